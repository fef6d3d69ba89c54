//! What comes with a request, taken apart so that a mistake in it is answered with a `Problem`.

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, OptionalFromRequest, Request};
use serde::de::DeserializeOwned;

use schemars::JsonSchema;

use crate::http::problem::Problem;
use crate::http::signature::{Argument, Schemas, Signature};

/// A JSON body.
#[derive(Debug, FromRequest)]
#[from_request(via(axum::Json), rejection(Problem))]
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> OptionalFromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Option<Self>, Problem> {
        let found = <Json<T> as OptionalFromRequest<S>>::from_request(request, state).await?;
        Ok(found.map(|Json(body)| Self(body)))
    }
}

/// The variable parts of the path.
#[derive(Debug, FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(Problem))]
pub struct Path<T>(pub T);

/// What follows the question mark.
#[derive(Debug, FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(Problem))]
pub struct Query<T>(pub T);

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(rejection.status(), "body_invalid", rejection.body_text())
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        Self::new(rejection.status(), "path_invalid", rejection.body_text())
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(rejection.status(), "query_invalid", rejection.body_text())
    }
}

impl<T: JsonSchema> Argument for Body<T> {
    fn describe(signature: &mut Signature, schemas: &mut Schemas) {
        signature.body = Some(schemas.taken.subschema_for::<T>());
    }
}

impl<T: JsonSchema> Argument for Path<T> {
    fn describe(signature: &mut Signature, schemas: &mut Schemas) {
        signature.path = Some(schemas.taken.subschema_for::<T>());
    }
}

impl<T: JsonSchema> Argument for Query<T> {
    /// Its fields are parameters of their own, and it needs no name.
    fn describe(signature: &mut Signature, schemas: &mut Schemas) {
        signature.query = Some(T::json_schema(&mut schemas.taken));
    }
}
