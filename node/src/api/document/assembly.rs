//! Puts the document together: the router's operations, what their handlers' types say, and the notes.
//!
//! Invariant: what does not fit – a route without a note, a note without a route, an answer whose
//! status nobody says – is a flaw that a test finds; the document is served all the same.

use std::collections::{BTreeMap, BTreeSet};

use schemars::Schema;
use serde_json::{Map, Value, json};

use super::note::{Content, Note};
use super::{subjects, usual};
use crate::http::routes::Operation;
use crate::http::signature::{Access, Answer, Schemas, Signature};
use crate::registry::RegistryErrors;

const JSON: &str = "application/json";
const REFERENCE: &str = "#/components/schemas/";
const ANSWER: &str = "#/components/responses/";
/// What a schema is called that is taken otherwise than it is given.
const INPUT: &str = "Input";

/// The document, and what is wrong with it.
#[derive(Debug)]
pub struct Assembled {
    pub document: Value,
    pub flaws: Vec<String>,
}

pub fn assemble(operations: Vec<Operation>) -> Assembled {
    let mut schemas = Schemas::default();
    let mut flaws = Vec::new();
    let problem = reference::<shoal_api::Problem>(&mut schemas);
    let errors = reference::<RegistryErrors>(&mut schemas);
    let subjects = subjects::all();
    let mut notes: BTreeMap<(&str, &str), (&str, &Note)> = BTreeMap::new();
    for subject in &subjects {
        for note in &subject.notes {
            if notes.insert((note.method, note.path), (subject.name, note)).is_some() {
                flaws.push(format!("two notes for {} {}", note.method, note.path));
            }
        }
    }
    let mut paths: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    let mut names = BTreeSet::new();
    let mut answers = BTreeMap::new();
    // Where a handler has several paths, that of our own API has its name.
    let (own, others): (Vec<&Operation>, Vec<&Operation>) =
        operations.iter().partition(|operation| operation.listed.path.starts_with("/api/v1/"));
    for operation in own.into_iter().chain(others) {
        let (method, path) = (operation.listed.method, operation.listed.path.as_str());
        let Some((subject, note)) = notes.remove(&(method, path)) else {
            flaws.push(format!("no note says what {method} {path} does"));
            continue;
        };
        let signature = operation.signature.map(|of| of(&mut schemas));
        let mut one = One {
            note,
            path,
            is_registry: signature.is_none(),
            signature: signature.unwrap_or_default(),
            schemas: &mut schemas,
            answers: &mut answers,
            flaws: &mut flaws,
        };
        let mut shown = one.shown(if path.starts_with("/v2") { &errors } else { &problem });
        let id = operation_id(operation, &mut names);
        shown.insert("operationId".to_owned(), json!(id));
        shown.insert("tags".to_owned(), json!([subject]));
        let at = paths.entry(template(path)).or_default();
        at.insert(method.to_lowercase(), Value::Object(shown));
    }
    flaws.extend(notes.keys().map(|(method, path)| format!("there is no {method} {path}")));
    let mut paths = json!(paths);
    let named = merged(schemas.into_named(), &mut paths);
    let tags: Vec<Value> = subjects
        .iter()
        .map(|subject| json!({ "name": subject.name, "description": subject.about }))
        .collect();
    let document = json!({
        "openapi": "3.1.1",
        "info": {
            "title": "Shoal",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Disk images of virtual machines and container images, kept once and \
                            brought to many hosts. Times are RFC 3339 in UTC; sizes end in `_bytes`. \
                            Every refusal has a `code` that never changes its meaning.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "tags": tags,
        "paths": paths,
        "components": {
            "schemas": named, "responses": answers, "securitySchemes": security_schemes(),
        },
    });
    Assembled { document, flaws }
}

fn reference<T: schemars::JsonSchema>(schemas: &mut Schemas) -> Value {
    schemas.given.subschema_for::<T>().to_value()
}

fn security_schemes() -> Value {
    json!({
        "bearer": {
            "type": "http",
            "scheme": "bearer",
            "description": "The token of a session, a token that a person has made, or one that \
                            another issuer has made where the settings name it.",
        },
        "basic": {
            "type": "http",
            "scheme": "basic",
            "description": "A name with its password, with a token that the person has made, or a \
                            robot's name with its secret.",
        },
        "machine": {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT",
            "description": "A short-lived token that an agent or a node signs with its own key \
                            (EdDSA).",
        },
    })
}

/// `{*path}` of the router is `{path}` here.
fn template(path: &str) -> String {
    path.replace("{*", "{")
}

/// `images_create` of `…::api::images::create`; where a handler has several paths, the further ones
/// have their method and path.
fn operation_id(operation: &Operation, names: &mut BTreeSet<String>) -> String {
    let listed = &operation.listed;
    let mut parts = operation.handler.rsplit("::");
    let (function, module) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let short = format!("{module}_{function}");
    if operation.signature.is_some() && names.insert(short.clone()) {
        return short;
    }
    let words = listed.path.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    let words = words.filter(|word| !word.is_empty()).map(|word| word.replace('-', "_"));
    let method = listed.method.to_lowercase();
    let long = words.fold(method, |name, word| format!("{name}_{word}"));
    names.insert(long.clone());
    long
}

/// One operation.
struct One<'a> {
    note: &'a Note,
    path: &'a str,
    is_registry: bool,
    signature: Signature,
    schemas: &'a mut Schemas,
    /// Those that many operations give.
    answers: &'a mut BTreeMap<String, Value>,
    flaws: &'a mut Vec<String>,
}

/// Reasons for one status.
#[derive(Default)]
struct Refusal {
    reasons: BTreeSet<&'static str>,
    /// Whether some are the operation's own.
    is_own: bool,
}

impl One<'_> {
    fn shown(&mut self, problem: &Value) -> Map<String, Value> {
        // Before the signature is taken apart.
        let refusals = self.refusals();
        let mut shown = Map::new();
        shown.insert("summary".to_owned(), json!(self.note.summary));
        if !self.note.about.is_empty() {
            shown.insert("description".to_owned(), json!(self.note.about));
        }
        let parameters = self.parameters();
        if !parameters.is_empty() {
            shown.insert("parameters".to_owned(), json!(parameters));
        }
        if let Some(body) = self.body() {
            shown.insert("requestBody".to_owned(), body);
        }
        shown.insert("responses".to_owned(), self.responses(problem, refusals));
        shown.insert("security".to_owned(), self.security());
        shown
    }

    fn flaw(&mut self, what: &str) {
        self.flaws.push(format!("{} {}: {what}", self.note.method, self.path));
    }

    fn security(&self) -> Value {
        match self.signature.access {
            _ if self.path == "/v2/token" && self.note.method == "GET" => {
                json!([{ "basic": [] }, {}])
            }
            _ if self.is_registry && self.path == "/v2/token" => json!([]),
            _ if self.is_registry => json!([{ "bearer": [] }, { "basic": [] }, {}]),
            Access::Open => json!([]),
            Access::Known => json!([{ "bearer": [] }, { "basic": [] }, { "machine": [] }]),
            Access::Admin => json!([{ "bearer": [] }, { "basic": [] }]),
            Access::Host | Access::Node => json!([{ "machine": [] }]),
            Access::Sibling => json!([{ "machine": [] }, { "bearer": [] }, { "basic": [] }]),
        }
    }

    fn parameters(&mut self) -> Vec<Value> {
        let parts: Vec<&str> = self.path.split('/').filter_map(variable).collect();
        let types = match self.signature.path.take().map(Schema::to_value) {
            None if self.is_registry => parts.iter().map(|part| registry_part(part)).collect(),
            None => Vec::new(),
            Some(mut schema) => match schema.get_mut("prefixItems").map(Value::take) {
                Some(Value::Array(several)) => several,
                _ => vec![schema],
            },
        };
        if types.len() != parts.len() {
            self.flaw("the handler takes other parts than the path has");
        }
        let mut shown: Vec<Value> = Vec::new();
        for (name, schema) in parts.into_iter().zip(types) {
            let about = usual::path_part(name);
            if about.is_empty() {
                self.flaw("a part of the path has no words");
            }
            let mut part = json!({
                "name": name, "in": "path", "required": true, "description": about,
                "schema": schema,
            });
            if self.path.contains(&format!("{{*{name}}}")) || (self.is_registry && name == "name") {
                part["x-slashes"] = json!(true);
            }
            shown.push(part);
        }
        if let Some(query) = self.signature.query.take() {
            shown.extend(query_parameters(&query.to_value()));
        }
        for parameter in &self.note.parameters {
            shown.push(json!({
                "name": parameter.name, "in": parameter.place, "required": false,
                "description": parameter.about, "schema": { "type": "string" },
            }));
        }
        shown
    }

    fn body(&mut self) -> Option<Value> {
        if let Some(schema) = self.signature.body.take() {
            let content = json!({ JSON: { "schema": schema } });
            let required = !self.signature.may_lack_body;
            return Some(json!({ "required": required, "content": content }));
        }
        let Content { media_type, .. } = match (&self.note.taken, self.signature.takes_bytes) {
            (Some(content), _) => content.clone(),
            (None, true) => Content { media_type: "application/octet-stream", schema: None },
            (None, false) => return None,
        };
        Some(json!({ "content": { media_type: {} } }))
    }

    fn responses(&mut self, problem: &Value, refusals: BTreeMap<u16, Refusal>) -> Value {
        let mut shown: BTreeMap<String, Value> = BTreeMap::new();
        let mut add = |status: u16, about: &str, content: Option<Value>| {
            let about = if about.is_empty() { usual::status_text(status) } else { about };
            let mut answer = json!({ "description": about });
            if let Some(content) = content {
                answer["content"] = content;
            }
            shown.insert(status.to_string(), answer);
        };
        for given in &self.note.given {
            let content = match (given.content.media_type, given.content.schema) {
                ("", _) => None,
                (media, Some(schema)) => {
                    Some(json!({ media: { "schema": schema(self.schemas).to_value() } }))
                }
                (media, None) => Some(json!({ media: {} })),
            };
            add(given.status, given.about, content);
        }
        let (mut lacks_status, mut misnamed) = (false, false);
        match std::mem::take(&mut self.signature.answer) {
            Answer::Unsaid => lacks_status = self.note.given.is_empty(),
            Answer::Empty => add(self.note.status.unwrap_or(204), "", None),
            Answer::Events => add(200, "", Some(json!({ "text/event-stream": {} }))),
            Answer::Json { schema, chooses_status } => {
                lacks_status = chooses_status != self.note.status.is_some();
                let content = json!({ JSON: { "schema": schema } });
                add(self.note.status.unwrap_or(200), "", Some(content.clone()));
                for (status, about) in &self.note.statuses {
                    add(*status, about, Some(content.clone()));
                }
            }
        }
        let writes = self.note.method != "GET";
        for (status, Refusal { reasons, is_own }) in refusals {
            let codes: Vec<&str> = reasons.iter().copied().collect();
            let ways: Vec<String> = codes.iter().map(|code| format!("`{code}`")).collect();
            let about = format!("{} {}.", usual::status_text(status), ways.join(", "));
            let answer = json!({
                "description": about, "content": { JSON: { "schema": problem } },
                "x-codes": codes,
            });
            let name = usual::answer_name(status, self.signature.access, writes);
            let name = name.filter(|_| !is_own);
            let answer = match name {
                Some(name) => {
                    let name = if self.is_registry { format!("Registry{name}") } else { name };
                    let reference = json!({ "$ref": format!("{ANSWER}{name}") });
                    if self.answers.entry(name).or_insert_with(|| answer.clone()) != &answer {
                        misnamed = true;
                    }
                    reference
                }
                None => answer,
            };
            shown.entry(status.to_string()).or_insert(answer);
        }
        if lacks_status {
            self.flaw("no note says the status of its answer, or one does that is chosen by type");
        }
        if misnamed {
            self.flaw("an answer that many give is another one here");
        }
        json!(shown)
    }

    /// By status.
    fn refusals(&self) -> BTreeMap<u16, Refusal> {
        let mut all: BTreeMap<u16, Refusal> = BTreeMap::new();
        if self.path == "/health" {
            return all;
        }
        let writes = self.note.method != "GET";
        let usual = match self.is_registry {
            true => usual::registry_refusals(),
            false => usual::refusals(&self.signature, writes),
        };
        for (status, reason) in usual {
            all.entry(status).or_default().reasons.insert(reason);
        }
        for (status, reasons) in &self.note.refusals {
            let refusal = all.entry(*status).or_default();
            refusal.reasons.extend(reasons);
            refusal.is_own = true;
        }
        all
    }
}

/// `image` of `{image}`, `path` of `{*path}`.
fn variable(segment: &str) -> Option<&str> {
    let name = segment.strip_prefix('{')?.strip_suffix('}')?;
    Some(name.strip_prefix('*').unwrap_or(name))
}

fn registry_part(name: &str) -> Value {
    match name {
        "name" => json!({ "type": "string", "examples": ["team/ubuntu"] }),
        "reference" => json!({ "type": "string", "examples": ["latest"] }),
        "upload" => json!({ "type": "string", "format": "uuid" }),
        _ => json!({ "type": "string" }),
    }
}

/// The fields of a query, each a parameter.
fn query_parameters(query: &Value) -> Vec<Value> {
    let required: Vec<&str> =
        query["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let fields = query["properties"].as_object().cloned().unwrap_or_default();
    let fields = fields.into_iter().map(|(name, mut schema)| {
        let mut shown =
            json!({ "name": name, "in": "query", "required": required.contains(&name.as_str()) });
        if let Some(about) = schema.as_object_mut().and_then(|schema| schema.remove("description"))
        {
            shown["description"] = about;
        }
        // What may be left out is not sent as `null`.
        if schema["default"].is_null()
            && let Some(schema) = schema.as_object_mut()
        {
            schema.remove("default");
        }
        if let Some(types) = schema.get_mut("type").and_then(Value::as_array_mut) {
            types.retain(|one| one != "null");
            if let [only] = types.as_slice() {
                schema["type"] = only.clone();
            }
        }
        if let Some(ways) = schema.get_mut("anyOf").and_then(Value::as_array_mut) {
            ways.retain(|way| way["type"] != "null");
            if let [only] = ways.as_slice() {
                schema = only.clone();
            }
        }
        shown["schema"] = schema;
        shown
    });
    fields.collect()
}

/// One set of names: a schema that is taken otherwise than given has another name where it is taken.
fn merged([mut taken, mut given]: [Map<String, Value>; 2], paths: &mut Value) -> Value {
    let mut differ: BTreeSet<String> = taken
        .iter()
        .filter(|(name, schema)| given.get(*name).is_some_and(|other| other != *schema))
        .map(|(name, _)| name.clone())
        .collect();
    loop {
        let refers = |schema: &Value| {
            let mut found = false;
            each_reference(&mut schema.clone(), &mut |name| {
                found |= differ.contains(name);
                None
            });
            found
        };
        let further: Vec<String> = taken
            .iter()
            .filter(|(name, schema)| {
                !differ.contains(*name) && given.contains_key(*name) && refers(schema)
            })
            .map(|(name, _)| name.clone())
            .collect();
        if further.is_empty() {
            break;
        }
        differ.extend(further);
    }
    let mut rename = |name: &str| differ.contains(name).then(|| format!("{name}{INPUT}"));
    for (_, operations) in paths.as_object_mut().into_iter().flatten() {
        for (_, operation) in operations.as_object_mut().into_iter().flatten() {
            for part in ["parameters", "requestBody"] {
                if let Some(part) = operation.get_mut(part) {
                    each_reference(part, &mut rename);
                }
            }
        }
    }
    for (name, mut schema) in std::mem::take(&mut taken) {
        each_reference(&mut schema, &mut rename);
        let name = rename(&name).unwrap_or(name);
        given.entry(name).or_insert(schema);
    }
    Value::Object(given)
}

/// Shows every name that is referred to, and takes another one for it.
fn each_reference(schema: &mut Value, see: &mut impl FnMut(&str) -> Option<String>) {
    match schema {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Value::String(text) if key == "$ref" => {
                        let name = text.strip_prefix(REFERENCE).and_then(&mut *see);
                        if let Some(name) = name {
                            *text = format!("{REFERENCE}{name}");
                        }
                    }
                    value => each_reference(value, see),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| each_reference(item, see)),
        _ => {}
    }
}
