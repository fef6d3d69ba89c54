//! The document as a page: groups, operations, parameters, schemas, and a `curl` for each.
//!
//! Invariants: no script, and nothing from elsewhere; the search is a form that is answered with a
//! shorter page. The one style stands in the page, and its hash in the policy. Whatever text is shown
//! is escaped. An anchor stands within what it is of: a browser opens what is around its target.

use std::fmt::Write as _;
use std::sync::LazyLock;

use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{Html, IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::sample::{resolved, sample};

const STYLE: &str = include_str!("page.css");

static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let hash = STANDARD.encode(Sha256::digest(STYLE.as_bytes()));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{hash}'; form-action 'self'; base-uri 'none'; \
         frame-ancestors 'none'"
    );
    HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
});

/// The page of what has all of these words in it; of everything where there are none.
pub fn shown(document: &Value, wanted: &str) -> Response {
    let headers = [
        (header::CONTENT_SECURITY_POLICY, POLICY.clone()),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (HeaderName::from_static("x-frame-options"), HeaderValue::from_static("DENY")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, Html(text(document, wanted))).into_response()
}

/// One operation with where it is.
struct Entry<'a> {
    method: &'a str,
    path: &'a str,
    operation: &'a Value,
}

impl Entry<'_> {
    fn id(&self) -> &str {
        self.operation["operationId"].as_str().unwrap_or_default()
    }

    fn has(&self, words: &[String]) -> bool {
        let text = format!("{} {} {}", self.method, self.path, self.operation).to_lowercase();
        words.iter().all(|word| text.contains(word.as_str()))
    }
}

fn text(document: &Value, wanted: &str) -> String {
    let words: Vec<String> = wanted.split_whitespace().map(str::to_lowercase).collect();
    let mut entries = Vec::new();
    for (path, operations) in document["paths"].as_object().into_iter().flatten() {
        for (method, operation) in operations.as_object().into_iter().flatten() {
            let entry = Entry { method, path, operation };
            if entry.has(&words) {
                entries.push(entry);
            }
        }
    }
    let mut page = String::with_capacity(256 * 1024);
    head(&mut page, document, wanted, entries.len());
    for tag in document["tags"].as_array().into_iter().flatten() {
        let of_tag: Vec<&Entry> =
            entries.iter().filter(|entry| entry.operation["tags"][0] == tag["name"]).collect();
        if of_tag.is_empty() {
            continue;
        }
        let name = str_of(&tag["name"]);
        put(&mut page, format_args!("<section id=\"{}\"><h2>{}</h2>", anchor(name), escaped(name)));
        put(&mut page, format_args!("<p>{}</p>", prose(str_of(&tag["description"]))));
        for entry in of_tag {
            operation(&mut page, document, entry, !words.is_empty());
        }
        page.push_str("</section>");
    }
    if words.is_empty() {
        usual(&mut page, document);
        schemas(&mut page, document);
    }
    page.push_str("</main></body></html>\n");
    page
}

/// Writing to a text does not fail.
fn put(page: &mut String, text: std::fmt::Arguments<'_>) {
    let _ = page.write_fmt(text);
}

fn str_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

/// Escaped, with what stands between backticks as code.
fn prose(text: &str) -> String {
    let parts = escaped(text);
    let parts = parts.split('`').enumerate();
    parts
        .map(|(at, part)| match at % 2 {
            0 => part.to_owned(),
            _ => format!("<code>{part}</code>"),
        })
        .collect()
}

fn anchor(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' }).collect()
}

fn head(page: &mut String, document: &Value, wanted: &str, count: usize) {
    let info = &document["info"];
    put(
        page,
        format_args!(
            "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
             <title>{title} API</title><style>{STYLE}</style></head><body>\
             <header><h1>{title} API <small>{version}</small></h1>\
             <p>{about} <a href=\"/api/v1/openapi.json\">OpenAPI 3.1</a></p>\
             <form action=\"/api/docs\" role=\"search\"><input type=\"search\" name=\"q\" \
             value=\"{wanted}\" maxlength=\"100\" placeholder=\"Path, word, code, schema\" \
             aria-label=\"Search\"><button>Search</button> {count} operations</form><nav>",
            title = escaped(str_of(&info["title"])),
            version = escaped(str_of(&info["version"])),
            about = prose(str_of(&info["description"])),
            wanted = escaped(wanted),
        ),
    );
    for tag in document["tags"].as_array().into_iter().flatten() {
        let name = str_of(&tag["name"]);
        put(page, format_args!("<a href=\"/api/docs#{}\">{}</a> ", anchor(name), escaped(name)));
    }
    page.push_str("<a href=\"/api/docs#schemas\">Schemas</a></nav></header><main>");
}

fn operation(page: &mut String, document: &Value, entry: &Entry<'_>, open: bool) {
    let Entry { method, path, operation } = entry;
    put(
        page,
        format_args!(
            "<details{open}><summary><b class=\"{method}\">{upper}</b> \
             <code>{path}</code> <span>{summary}</span></summary><div id=\"{id}\">",
            id = escaped(entry.id()),
            open = if open { " open" } else { "" },
            upper = method.to_uppercase(),
            path = escaped(path),
            summary = escaped(str_of(&operation["summary"])),
        ),
    );
    if let Some(about) = operation["description"].as_str() {
        put(page, format_args!("<p>{}</p>", prose(about)));
    }
    let ways = operation["security"].as_array().into_iter().flatten();
    let ways: Vec<&str> = ways
        .map(|way| way.as_object().and_then(|way| way.keys().next()).map_or("nobody", |way| way))
        .collect();
    let who = if ways.is_empty() { "anyone".to_owned() } else { ways.join(", ") };
    put(page, format_args!("<p>Credentials: {}</p>", escaped(&who)));
    parameters(page, &operation["parameters"]);
    for (media, body) in operation["requestBody"]["content"].as_object().into_iter().flatten() {
        put(page, format_args!("<p>Takes {}: {}</p>", escaped(media), kind(&body["schema"])));
    }
    page.push_str("<table><tr><th>Answer<th>Means<th>Body</tr>");
    let mut usual = Vec::new();
    for (status, answer) in operation["responses"].as_object().into_iter().flatten() {
        if answer.get("$ref").is_some() {
            usual.push(status.as_str());
            continue;
        }
        let bodies = answer["content"].as_object().into_iter().flatten();
        let bodies: Vec<String> = bodies
            .map(|(media, body)| match body.get("schema") {
                Some(schema) if media == "application/json" => kind(schema),
                Some(schema) => format!("{}: {}", escaped(media), kind(schema)),
                None => escaped(media),
            })
            .collect();
        put(
            page,
            format_args!(
                "<tr><td>{}<td>{}<td>{}</tr>",
                escaped(status),
                prose(str_of(&answer["description"])),
                bodies.join(", "),
            ),
        );
    }
    page.push_str("</table>");
    if !usual.is_empty() {
        let link = "<a href=\"/api/docs#usual\">What is usual besides</a>";
        put(page, format_args!("<p>{link}: {}</p>", escaped(&usual.join(", "))));
    }
    put(page, format_args!("<pre>{}</pre></div></details>", escaped(&curl(document, entry))));
}

fn parameters(page: &mut String, parameters: &Value) {
    let Some(parameters) = parameters.as_array() else { return };
    page.push_str("<table><tr><th>Parameter<th>In<th>Kind<th>Means</tr>");
    for one in parameters {
        let required = if one["required"] == true { " *" } else { "" };
        put(
            page,
            format_args!(
                "<tr><td><code>{}</code>{required}<td>{}<td>{}<td>{}</tr>",
                escaped(str_of(&one["name"])),
                escaped(str_of(&one["in"])),
                kind(&one["schema"]),
                prose(str_of(&one["description"])),
            ),
        );
    }
    page.push_str("</table>");
}

/// What a schema is, in a few words, with links to those that have names.
fn kind(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|text| text.rsplit('/').next()) {
        let (anchor, name) = (anchor(name), escaped(name));
        return format!("<a href=\"/api/docs#schema-{anchor}\">{name}</a>");
    }
    for way in ["anyOf", "oneOf"] {
        if let Some(ways) = schema[way].as_array() {
            return ways.iter().map(kind).collect::<Vec<_>>().join(" or ");
        }
    }
    if let Some(fixed) = schema.get("const") {
        return escaped(&fixed.to_string());
    }
    let names: Vec<&str> = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        Value::String(one) => vec![one.as_str()],
        _ => vec!["any"],
    };
    let named = names.iter().map(|name| match *name {
        "array" => format!("list of {}", kind(&schema["items"])),
        "object" if schema["additionalProperties"].is_object() => {
            format!("map to {}", kind(&schema["additionalProperties"]))
        }
        name => escaped(name),
    });
    named.collect::<Vec<_>>().join(" or ")
}

/// Answers that many operations give.
fn usual(page: &mut String, document: &Value) {
    page.push_str("<section id=\"usual\"><h2>Usual refusals</h2><table>");
    for (name, answer) in document["components"]["responses"].as_object().into_iter().flatten() {
        let about = prose(str_of(&answer["description"]));
        put(page, format_args!("<tr><td><code>{}</code><td>{about}</tr>", escaped(name)));
    }
    page.push_str("</table></section>");
}

fn schemas(page: &mut String, document: &Value) {
    page.push_str("<section id=\"schemas\"><h2>Schemas</h2>");
    for (name, schema) in document["components"]["schemas"].as_object().into_iter().flatten() {
        put(
            page,
            format_args!(
                "<details><summary><code>{}</code></summary><div id=\"schema-{}\"><p>{}</p>",
                escaped(name),
                anchor(name),
                prose(str_of(&schema["description"])),
            ),
        );
        fields(page, schema);
        for way in schema["oneOf"].as_array().into_iter().flatten() {
            put(page, format_args!("<p>One way: {}</p>", prose(str_of(&way["description"]))));
            fields(page, way);
        }
        if let Some(pattern) = schema["pattern"].as_str() {
            put(page, format_args!("<p>Pattern: <code>{}</code></p>", escaped(pattern)));
        }
        page.push_str("</div></details>");
    }
    page.push_str("</section>");
}

fn fields(page: &mut String, schema: &Value) {
    let Some(fields) = schema["properties"].as_object() else {
        put(page, format_args!("<p>{}</p>", kind(schema)));
        return;
    };
    let required = schema["required"].as_array();
    page.push_str("<table><tr><th>Field<th>Kind<th>Means</tr>");
    for (name, field) in fields {
        let always = required.is_some_and(|all| all.iter().any(|one| one == name));
        put(
            page,
            format_args!(
                "<tr><td><code>{}</code>{}<td>{}<td>{}</tr>",
                escaped(name),
                if always { " *" } else { "" },
                kind(field),
                prose(str_of(&field["description"])),
            ),
        );
    }
    page.push_str("</table>");
}

/// For a shell in which `NODE` is the node's address and `TOKEN` a token.
fn curl(document: &Value, entry: &Entry<'_>) -> String {
    let Entry { method, path, operation } = entry;
    let mut command = "curl".to_owned();
    if *method != "get" {
        put(&mut command, format_args!(" -X {}", method.to_uppercase()));
    }
    if operation["security"].as_array().is_some_and(|ways| !ways.is_empty()) {
        command.push_str(" -H \"Authorization: Bearer $TOKEN\"");
    }
    let mut path = (*path).to_owned();
    for one in operation["parameters"].as_array().into_iter().flatten() {
        if one["in"] == "path" {
            let example = resolved(document, &one["schema"])["examples"][0].clone();
            let example = match example {
                Value::String(text) => text,
                Value::Null => str_of(&one["name"]).to_uppercase(),
                other => other.to_string(),
            };
            path = path.replace(&format!("{{{}}}", str_of(&one["name"])), &example);
        }
    }
    for (media, body) in operation["requestBody"]["content"].as_object().into_iter().flatten() {
        match body.get("schema") {
            Some(schema) => {
                let body = sample(document, schema).to_string().replace('\'', "'\\''");
                put(
                    &mut command,
                    format_args!(" \\\n  -H 'Content-Type: {media}' \\\n  -d '{body}'"),
                );
            }
            None => put(
                &mut command,
                format_args!(" \\\n  -H 'Content-Type: {media}' --data-binary @FILE"),
            ),
        }
    }
    put(&mut command, format_args!(" \\\n  \"$NODE{path}\""));
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_looked_for_stays_text() {
        let assembled = super::super::assemble(crate::http::routes().into_operations());
        let page = text(&assembled.document, "\"><script>alert(1)</script>");
        assert!(!page.contains("<script") && page.contains("&lt;script&gt;"), "{page}");
        assert!(page.contains(" 0 operations"), "{page}");
        let page = text(&assembled.document, "STAR image");
        assert!(
            page.contains("/api/v1/images/{image}/star") && !page.contains("<code>/api/v1/backup")
        );
        let all = text(&assembled.document, "");
        for (path, _) in assembled.document["paths"].as_object().unwrap() {
            assert!(all.contains(&format!("<code>{}</code>", escaped(path))), "{path}");
        }
        assert!(
            !all.contains("<script") && !all.contains("href=\"http") && !all.contains(" style=\"")
        );
    }
}
