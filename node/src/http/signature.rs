//! What a handler's own types say about its operation: who may call it, what it takes out of path,
//! query and body, and what it answers.
//!
//! Invariant: a signature is made of the types in the handler's signature and of nothing else, so
//! that a published schema is that of what is parsed and written.
//! Non-goal: what types do not say, such as reasons for a refusal; see `api::document`.

use std::net::SocketAddr;

use axum::Json;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{Response, Sse};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value};

/// Where the named schemas stand in the document.
const SCHEMAS: &str = "/components/schemas";

/// Who is let in; what may be done then is asked for each thing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Access {
    /// Anyone; some of these bring what they are let in by in their body.
    #[default]
    Open,
    /// Anyone whom the cluster knows.
    Known,
    Admin,
    Host,
    Sibling,
    /// A node, by its own key.
    Node,
}

/// What is answered when all is well.
#[derive(Debug, Default)]
pub enum Answer {
    /// The handler makes the whole response itself.
    #[default]
    Unsaid,
    /// A status and no body.
    Empty,
    /// A body; `chooses_status` is that the handler says the status, too.
    Json { schema: Schema, chooses_status: bool },
    /// Server-sent events.
    Events,
}

/// What is known of an operation by its handler's type.
#[derive(Debug, Default)]
pub struct Signature {
    pub access: Access,
    /// Of the variable parts: of one, or `prefixItems` of several.
    pub path: Option<Schema>,
    /// An object whose properties are the parameters.
    pub query: Option<Schema>,
    pub body: Option<Schema>,
    /// The body may be missing.
    pub may_lack_body: bool,
    /// Whether the body is bytes.
    pub takes_bytes: bool,
    pub answer: Answer,
}

/// The schemas of all that operations speak of. What is taken and what is given differ: a field with
/// a default may be left out of the one, and is always in the other.
#[derive(Debug)]
pub struct Schemas {
    pub taken: SchemaGenerator,
    pub given: SchemaGenerator,
}

impl Default for Schemas {
    fn default() -> Self {
        let settings = || {
            SchemaSettings::draft2020_12().with(|settings| {
                settings.definitions_path = SCHEMAS.into();
                settings.meta_schema = None;
            })
        };
        let (taken, given) = (settings().for_deserialize(), settings().for_serialize());
        Self { taken: taken.into_generator(), given: given.into_generator() }
    }
}

impl Schemas {
    /// Those that have names: of what is taken, and of what is given.
    pub fn into_named(mut self) -> [Map<String, Value>; 2] {
        [self.taken.take_definitions(true), self.given.take_definitions(true)]
    }
}

/// Something that a handler takes.
pub trait Argument {
    fn describe(signature: &mut Signature, schemas: &mut Schemas);
}

/// Something that a handler returns.
pub trait Outcome {
    fn describe(schemas: &mut Schemas) -> Answer;
}

/// A handler, by the tuple of its arguments.
pub trait Described<Arguments> {
    fn signature(schemas: &mut Schemas) -> Signature;
}

macro_rules! described {
    ($($argument:ident)*) => {
        impl<F, Future, Returned, $($argument),*> Described<($($argument,)*)> for F
        where
            F: Fn($($argument),*) -> Future,
            Future: std::future::Future<Output = Returned>,
            Returned: Outcome,
            $($argument: Argument,)*
        {
            fn signature(schemas: &mut Schemas) -> Signature {
                let answer = Returned::describe(schemas);
                #[allow(unused_mut, reason = "a handler may take nothing")]
                let mut signature = Signature { answer, ..Signature::default() };
                $($argument::describe(&mut signature, schemas);)*
                signature
            }
        }
    };
}

described! {}
described! { A }
described! { A B }
described! { A B C }
described! { A B C D }
described! { A B C D E }
described! { A B C D E G }

/// What says nothing about the operation.
macro_rules! silent {
    ($($name:ty)*) => {
        $(impl Argument for $name {
            fn describe(_: &mut Signature, _: &mut Schemas) {}
        })*
    };
}

silent! { ConnectInfo<SocketAddr> HeaderMap Method }

impl<S> Argument for State<S> {
    fn describe(_: &mut Signature, _: &mut Schemas) {}
}

impl Argument for axum::body::Body {
    fn describe(signature: &mut Signature, _: &mut Schemas) {
        signature.takes_bytes = true;
    }
}

impl<T: Argument> Argument for Option<T> {
    fn describe(signature: &mut Signature, schemas: &mut Schemas) {
        T::describe(signature, schemas);
        signature.may_lack_body = signature.body.is_some();
    }
}

/// What is let in by who it is, or answered otherwise.
impl<T: Argument, E> Argument for Result<T, E> {
    fn describe(signature: &mut Signature, schemas: &mut Schemas) {
        T::describe(signature, schemas);
    }
}

impl<T: JsonSchema> Outcome for Json<T> {
    fn describe(schemas: &mut Schemas) -> Answer {
        Answer::Json { schema: schemas.given.subschema_for::<T>(), chooses_status: false }
    }
}

impl<T: JsonSchema> Outcome for (StatusCode, Json<T>) {
    fn describe(schemas: &mut Schemas) -> Answer {
        Answer::Json { schema: schemas.given.subschema_for::<T>(), chooses_status: true }
    }
}

impl Outcome for StatusCode {
    fn describe(_: &mut Schemas) -> Answer {
        Answer::Empty
    }
}

impl Outcome for Response {
    fn describe(_: &mut Schemas) -> Answer {
        Answer::Unsaid
    }
}

impl<S> Outcome for Sse<S> {
    fn describe(_: &mut Schemas) -> Answer {
        Answer::Events
    }
}

impl<T: Outcome, E> Outcome for Result<T, E> {
    fn describe(schemas: &mut Schemas) -> Answer {
        T::describe(schemas)
    }
}
