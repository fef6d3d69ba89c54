//! Lists that come in parts, by name: each answer has at most [`PART_MAX`] items, and a `Link` to the next
//! part where there may be more (RFC 8288).
//!
//! Invariant: a part costs what is in it, wherever it begins. It may be short, or empty, and not be the last
//! one; that is one without a link.

use axum::Json;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::http::signature::{Answer, Outcome, Schemas};

/// Items of one answer.
pub const PART_MAX: usize = 1000;

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PartQuery {
    /// Names that come behind it; the links have it.
    pub after: String,
    /// At most so many, and never more than 1000.
    pub limit: Option<usize>,
}

impl PartQuery {
    pub fn limit(&self) -> usize {
        self.limit.unwrap_or(PART_MAX).clamp(1, PART_MAX)
    }

    /// Leaves as many rows as a part has, and says where the next one begins: there were more than that.
    pub fn cut<T>(&self, rows: &mut Vec<T>, name: impl Fn(&T) -> String) -> Option<String> {
        let more = rows.len() > self.limit();
        rows.truncate(self.limit());
        rows.last().filter(|_| more).map(name)
    }
}

/// What is answered, and where it goes on.
#[derive(Debug)]
pub struct Linked<B> {
    body: B,
    link: Option<String>,
}

/// Some items of a list.
pub type Part<T> = Linked<Vec<T>>;

impl<B> Linked<B> {
    /// `next` is the name that the next part begins behind.
    pub fn new(path: &str, wanted: &PartQuery, body: B, next: Option<String>) -> Self {
        Self::filtered(path, wanted, &[], body, next)
    }

    /// The same of a list that `filters` were given for, which the link has as well.
    pub fn filtered(
        path: &str,
        wanted: &PartQuery,
        filters: &[(&str, String)],
        body: B,
        next: Option<String>,
    ) -> Self {
        let link = next.map(|next| {
            let escaped = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
            let filters = filters.iter().map(|(name, value)| format!("&{name}={}", escaped(value)));
            let (limit, filters) = (wanted.limit(), filters.collect::<String>());
            format!("<{path}?limit={limit}&after={}{filters}>; rel=\"next\"", escaped(&next))
        });
        Self { body, link }
    }

    /// One that is the whole answer.
    pub fn last(body: B) -> Self {
        Self { body, link: None }
    }
}

impl<B: Serialize> IntoResponse for Linked<B> {
    fn into_response(self) -> Response {
        let mut response = Json(self.body).into_response();
        // What is escaped fits into a header.
        if let Some(link) = self.link.and_then(|link| HeaderValue::from_str(&link).ok()) {
            response.headers_mut().insert(header::LINK, link);
        }
        response
    }
}

impl<B: JsonSchema> Outcome for Linked<B> {
    fn describe(schemas: &mut Schemas) -> Answer {
        Json::<B>::describe(schemas)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_leads_on_from_its_last_name_where_there_is_more() {
        let wanted = PartQuery { limit: Some(2), ..PartQuery::default() };
        let link = |names: &[&str], filters: &[(&str, &str)]| {
            let mut rows: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let next = wanted.cut(&mut rows, String::clone);
            assert!(rows.len() <= 2);
            let filters: Vec<(&str, String)> =
                filters.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
            let part = Part::filtered("/x", &wanted, &filters, rows, next);
            let response = part.into_response();
            let link = response.headers().get(header::LINK)?;
            Some(link.to_str().unwrap().to_owned())
        };
        assert_eq!(link(&["a", "b"], &[("of", "x")]), None);
        let next = "</x?limit=2&after=b%26%C3%A9>; rel=\"next\"";
        assert_eq!(link(&["a", "b&é", "c"], &[]).as_deref(), Some(next));
        let next = "</x?limit=2&after=b&of=a%2Fb>; rel=\"next\"";
        assert_eq!(link(&["a", "b", "c"], &[("of", "a/b")]).as_deref(), Some(next));
    }

    #[test]
    fn a_part_has_at_least_one_item_and_at_most_a_thousand() {
        for (limit, wanted) in [(None, 1000), (Some(0), 1), (Some(7), 7), (Some(usize::MAX), 1000)]
        {
            assert_eq!(PartQuery { limit, ..PartQuery::default() }.limit(), wanted);
        }
    }
}
