//! What no type says of an operation: in words what it does, the statuses of its answers, and the
//! reasons that it gives for a refusal.
//!
//! Non-goal: what follows from the handler's types (see `http::signature`) and what every operation of
//! its kind may answer (see `usual`).

use schemars::{JsonSchema, Schema};

use crate::http::signature::Schemas;

/// A body that is taken or given besides what types say.
#[derive(Debug, Clone)]
pub struct Content {
    /// Empty is no body.
    pub media_type: &'static str,
    /// Of JSON.
    pub schema: Option<fn(&mut Schemas) -> Schema>,
}

/// A further answer that is no problem.
#[derive(Debug, Clone)]
pub struct Given {
    pub status: u16,
    pub about: &'static str,
    pub content: Content,
}

/// A header or parameter that no type names.
#[derive(Debug, Clone)]
pub struct Parameter {
    pub place: &'static str,
    pub name: &'static str,
    pub about: &'static str,
}

#[derive(Debug, Clone)]
pub struct Note {
    pub method: &'static str,
    /// As the router has it.
    pub path: &'static str,
    pub summary: &'static str,
    pub about: &'static str,
    /// What is answered when all is well, where that is not 200, or 204 without a body.
    pub status: Option<u16>,
    /// Further statuses of the same body.
    pub statuses: Vec<(u16, &'static str)>,
    pub given: Vec<Given>,
    pub taken: Option<Content>,
    pub parameters: Vec<Parameter>,
    /// By status, the reasons.
    pub refusals: Vec<(u16, Vec<&'static str>)>,
}

/// Operations of one kind.
#[derive(Debug, Clone)]
pub struct Subject {
    pub name: &'static str,
    pub about: &'static str,
    pub notes: Vec<Note>,
}

macro_rules! methods {
    ($($name:ident $method:literal)*) => {
        $(pub fn $name(path: &'static str, summary: &'static str) -> Note {
            Note::new($method, path, summary)
        })*
    };
}

methods! { get "GET" post "POST" put "PUT" patch "PATCH" delete "DELETE" }

impl Note {
    fn new(method: &'static str, path: &'static str, summary: &'static str) -> Self {
        Self {
            method,
            path,
            summary,
            about: "",
            status: None,
            statuses: Vec::new(),
            given: Vec::new(),
            taken: None,
            parameters: Vec::new(),
            refusals: Vec::new(),
        }
    }

    pub fn about(self, about: &'static str) -> Self {
        Self { about, ..self }
    }

    /// When all is well.
    pub fn status(self, status: u16) -> Self {
        Self { status: Some(status), ..self }
    }

    /// The same body may also come with this status.
    pub fn or(mut self, status: u16, about: &'static str) -> Self {
        self.statuses.push((status, about));
        self
    }

    /// An answer that is no JSON; without a media type, one without a body.
    pub fn gives(mut self, status: u16, media_type: &'static str, about: &'static str) -> Self {
        self.given.push(Given { status, about, content: Content { media_type, schema: None } });
        self
    }

    pub fn gives_json<T: JsonSchema>(self, status: u16, about: &'static str) -> Self {
        self.gives_as::<T>(status, "application/json", about)
    }

    /// JSON, one object a line.
    pub fn gives_lines<T: JsonSchema>(self, status: u16, about: &'static str) -> Self {
        self.gives_as::<T>(status, "application/x-ndjson", about)
    }

    /// JSON under another name.
    pub fn gives_as<T: JsonSchema>(
        mut self,
        status: u16,
        media_type: &'static str,
        about: &'static str,
    ) -> Self {
        let schema: fn(&mut Schemas) -> Schema = |schemas| schemas.given.subschema_for::<T>();
        let content = Content { media_type, schema: Some(schema) };
        self.given.push(Given { status, about, content });
        self
    }

    /// A body that is no JSON.
    pub fn takes(self, media_type: &'static str) -> Self {
        Self { taken: Some(Content { media_type, schema: None }), ..self }
    }

    pub fn header(self, name: &'static str, about: &'static str) -> Self {
        self.parameter("header", name, about)
    }

    pub fn query(self, name: &'static str, about: &'static str) -> Self {
        self.parameter("query", name, about)
    }

    fn parameter(mut self, place: &'static str, name: &'static str, about: &'static str) -> Self {
        self.parameters.push(Parameter { place, name, about });
        self
    }

    /// Reasons, parted by spaces, for answering with this status.
    pub fn refuses(mut self, status: u16, reasons: &'static str) -> Self {
        let known = self.refusals.iter_mut().find(|(known, _)| *known == status);
        match known {
            Some((_, known)) => known.extend(reasons.split(' ')),
            None => self.refusals.push((status, reasons.split(' ').collect())),
        }
        self
    }
}
