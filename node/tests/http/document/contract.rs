//! Holds requests and answers against the document of the API: whether it has the operation, the
//! status and the reason, and whether the JSON is what its schemas say.

use std::collections::HashMap;
use std::sync::LazyLock;

use anyhow::{Context, Result, bail, ensure};
use boon::{Compiler, SchemaIndex, Schemas};
use reqwest::{Response, StatusCode, header};
use serde_json::{Value, json};
use shoal_node::api::document::assemble;

const PLACE: &str = "https://shoal.invalid/contract.json";
const JSON: &str = "application/json";

pub static CONTRACT: LazyLock<Contract> =
    LazyLock::new(|| Contract::new().expect("the document can be read"));

/// The document, with its schemas ready to be compared with.
pub struct Contract {
    pub document: Value,
    templates: Vec<(String, Vec<Segment>)>,
    schemas: Schemas,
    /// By the JSON of the schema.
    compiled: HashMap<String, SchemaIndex>,
}

enum Segment {
    Fixed(String),
    One,
    /// Several segments.
    Many,
}

impl Contract {
    fn new() -> Result<Self> {
        let document = assemble(shoal_node::http::routes().into_operations()).document;
        let mut bodies = Vec::new();
        let mut templates = Vec::new();
        for (path, operations) in document["paths"].as_object().context("no paths")? {
            let operations = operations.as_object().context("no operations")?;
            let parameters = operations.values().filter_map(|one| one["parameters"].as_array());
            let wide: Vec<&Value> =
                parameters.flatten().filter(|one| one["x-slashes"] == true).collect();
            let segment = |text: &str| match text.strip_prefix('{') {
                None => Segment::Fixed(text.to_owned()),
                Some(name) if wide.iter().any(|one| one["name"] == name.trim_end_matches('}')) => {
                    Segment::Many
                }
                Some(_) => Segment::One,
            };
            templates.push((path.clone(), path.split('/').map(segment).collect()));
            for operation in operations.values() {
                let parameters = operation["parameters"].as_array().into_iter().flatten();
                bodies.extend(parameters.map(|parameter| parameter["schema"].clone()));
                let answers = operation["responses"].as_object().context("no answers")?;
                let named = document["components"]["responses"].as_object();
                let named = named.into_iter().flat_map(serde_json::Map::values);
                let bodies_of = answers.values().chain([&operation["requestBody"]]).chain(named);
                for body in bodies_of {
                    for content in body["content"].as_object().into_iter().flatten() {
                        bodies.extend(content.1.get("schema").cloned());
                    }
                }
            }
        }
        bodies.sort_by_key(Value::to_string);
        bodies.dedup();
        let root = json!({ "components": document["components"], "bodies": bodies });
        let (mut compiler, mut schemas) = (Compiler::new(), Schemas::new());
        compiler.add_resource(PLACE, root).map_err(|error| anyhow::anyhow!("{error}"))?;
        let mut compiled = HashMap::new();
        for (at, body) in bodies.iter().enumerate() {
            let index = compiler.compile(&format!("{PLACE}#/bodies/{at}"), &mut schemas);
            let index = index.map_err(|error| anyhow::anyhow!("{body}: {error:#}"))?;
            compiled.insert(body.to_string(), index);
        }
        Ok(Self { document, templates, schemas, compiled })
    }

    /// The operation that such a request is for; the one whose path says most.
    fn operation(&self, method: &str, path: &str) -> Result<&Value> {
        let path = path.split('?').next().unwrap_or_default();
        let segments: Vec<&str> = path.split('/').collect();
        let fitting = self.templates.iter().filter(|(_, template)| fits(template, &segments));
        let fixed = |template: &[Segment]| {
            template.iter().map(|it| u8::from(matches!(it, Segment::Fixed(_)))).collect::<Vec<_>>()
        };
        let best = fitting.max_by_key(|(_, template)| fixed(template));
        let (template, _) = best.with_context(|| format!("the document has no {path}"))?;
        let found = self.document["paths"][template].get(method.to_lowercase());
        found.with_context(|| format!("the document has no {method} {template}"))
    }

    /// The answer that is meant, where many operations have it.
    pub fn resolved<'a>(&'a self, answer: &'a Value) -> &'a Value {
        let name = answer["$ref"].as_str().and_then(|text| text.rsplit('/').next());
        name.map_or(answer, |name| &self.document["components"]["responses"][name])
    }

    fn check_schema(&self, schema: &Value, found: &Value) -> Result<()> {
        let index = self.compiled.get(&schema.to_string()).context("an unknown schema")?;
        let checked = self.schemas.validate(found, *index);
        checked.map_err(|error| anyhow::anyhow!("{error:#} in {found}"))
    }

    /// # Errors
    /// Where the document does not let such a body be sent.
    pub fn check_request(&self, method: &str, path: &str, body: &Value) -> Result<()> {
        let operation = self.operation(method, path)?;
        let content = &operation["requestBody"]["content"][JSON];
        let Some(schema) = content.get("schema") else { return Ok(()) };
        self.check_schema(schema, body).with_context(|| format!("the request {method} {path}"))
    }

    /// # Errors
    /// Where the document does not say that this is answered there.
    pub fn check_answer(
        &self,
        method: &str,
        path: &str,
        status: u16,
        media_type: &str,
        body: &[u8],
    ) -> Result<()> {
        let what = || format!("{method} {path} is answered {status}");
        let operation = self.operation(method, path)?;
        let answer = operation["responses"].get(status.to_string());
        let answer =
            answer.with_context(|| format!("{}, which the document does not have", what()))?;
        let answer = self.resolved(answer);
        if let Some(codes) = answer["x-codes"].as_array() {
            let found: Value = serde_json::from_slice(body).with_context(what)?;
            let code = found.get("code").unwrap_or(&found["errors"][0]["code"]);
            ensure!(codes.contains(code), "{} with {code}, not one of {codes:?}", what());
        }
        let contents = answer["content"].as_object();
        let Some(contents) = contents else {
            ensure!(body.is_empty(), "{} with a body that the document does not have", what());
            return Ok(());
        };
        if media_type == JSON || contents.contains_key(JSON) {
            let schema = contents.get(JSON).and_then(|content| content.get("schema"));
            let schema = schema.with_context(|| format!("{} as {media_type}", what()))?;
            let found = serde_json::from_slice(body).with_context(what)?;
            return self.check_schema(schema, &found).with_context(what);
        }
        Ok(())
    }
}

fn fits(template: &[Segment], path: &[&str]) -> bool {
    match (template, path) {
        ([], []) => true,
        ([Segment::Fixed(text), rest @ ..], [first, others @ ..]) => {
            text == first && fits(rest, others)
        }
        ([Segment::One, rest @ ..], [_, others @ ..]) => fits(rest, others),
        ([Segment::Many, rest @ ..], [_, others @ ..]) => {
            fits(rest, others) || (!others.is_empty() && fits(template, others))
        }
        _ => false,
    }
}

/// The body of an answer that the document has.
///
/// # Errors
/// Where it has not, or where it lets the request not be sent that was carried out.
pub async fn answered(
    method: &str,
    path: &str,
    sent: Option<&Value>,
    response: Response,
) -> Result<(StatusCode, Vec<u8>)> {
    let status = response.status();
    let kind = response.headers().get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().to_owned();
    let body = response.bytes().await?.to_vec();
    CONTRACT.check_answer(method, path, status.as_u16(), &kind, &body)?;
    if let Some(sent) = sent.filter(|_| status.is_success()) {
        CONTRACT.check_request(method, path, sent)?;
    }
    Ok((status, body))
}

#[test]
fn what_is_not_in_the_document_is_found() -> Result<()> {
    let check = |path: &str, status, body: &Value| {
        let body = body.to_string();
        CONTRACT.check_answer("GET", path, status, JSON, body.as_bytes())
    };
    let me = json!({ "username": "admin", "role": "admin" });
    check("/api/v1/auth/me", 200, &me)?;
    let refused = json!({ "code": "unauthorized", "message": "log in" });
    check("/api/v1/auth/me?x=1", 401, &refused)?;
    for (path, status, body) in [
        ("/api/v1/auth/me", 200, &json!({ "username": "admin" })),
        ("/api/v1/auth/me", 200, &json!({ "username": 7, "role": "admin" })),
        ("/api/v1/auth/me", 201, &me),
        ("/api/v1/auth/me", 401, &json!({ "code": "no_such_reason", "message": "" })),
        ("/api/v1/auth/me", 401, &json!({ "code": "unauthorized" })),
        ("/api/v1/auth/you", 200, &me),
    ] {
        if check(path, status, body).is_ok() {
            bail!("{path} {status} {body} is in the document");
        }
    }
    let wrong = json!({ "name": "UPPER" });
    ensure!(CONTRACT.check_request("POST", "/api/v1/images", &wrong).is_err());
    ensure!(CONTRACT.check_request("POST", "/api/v1/images", &json!({ "name": "a/b" })).is_ok());
    let (registry, quotas) = ("/v2/a/b/c/manifests/latest", "/api/v1/quotas/group:acme/dev");
    ensure!(CONTRACT.operation("GET", registry)?["summary"].as_str().is_some());
    ensure!(
        CONTRACT.operation("PUT", quotas).is_ok() && CONTRACT.operation("POST", quotas).is_err()
    );
    Ok(())
}
