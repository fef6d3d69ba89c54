//! The document of the API: that it is whole, that it is true, and how it is served.
//!
//! Whatever other tests call through `Node::call` and `Node::get`, and all that the matrix of rights
//! is answered, is held against it besides (see `contract`).

pub mod contract;
mod golden;

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use reqwest::{Method, StatusCode, header};
use serde_json::Value;
use shoal_node::api::document::assemble;

use self::contract::CONTRACT;
use super::node::Node;

#[test]
fn every_route_is_in_the_document_with_all_that_its_types_leave_open() -> Result<()> {
    let routes = shoal_node::http::routes().list();
    let assembled = assemble(shoal_node::http::routes().into_operations());
    ensure!(assembled.flaws.is_empty(), "{:#?}", assembled.flaws);
    let paths = assembled.document["paths"].as_object().context("no paths")?;
    let count: usize = paths.values().filter_map(Value::as_object).map(serde_json::Map::len).sum();
    ensure!(count == routes.len() && count > 120, "{count} of {}", routes.len());
    let operations = paths.values().filter_map(Value::as_object).flatten();
    let ids: BTreeSet<&str> =
        operations.filter_map(|(_, one)| one["operationId"].as_str()).collect();
    ensure!(ids.len() == count, "some operations share an id");
    Ok(())
}

#[test]
fn a_route_without_a_note_is_a_flaw() -> Result<()> {
    let mut operations = shoal_node::http::routes().into_operations();
    operations.retain(|operation| operation.listed.path != "/api/v1/blocks");
    let mut further = operations[0].clone();
    further.listed.path = "/api/v1/further".to_owned();
    operations.push(further);
    let flaws = assemble(operations).flaws;
    let has = |text: &str| flaws.iter().any(|flaw| flaw.contains(text));
    ensure!(has("/api/v1/further") && has("GET /api/v1/blocks") && flaws.len() == 2, "{flaws:?}");
    Ok(())
}

#[test]
fn every_reference_leads_somewhere_and_every_schema_is_used() -> Result<()> {
    fn look(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                if let Some(name) = fields.get("$ref").and_then(Value::as_str) {
                    found.insert(name.to_owned());
                }
                fields.values().for_each(|value| look(value, found));
            }
            Value::Array(items) => items.iter().for_each(|item| look(item, found)),
            _ => {}
        }
    }
    let mut referred = BTreeSet::new();
    look(&CONTRACT.document, &mut referred);
    let named = CONTRACT.document["components"]["schemas"].as_object().context("no schemas")?;
    let named: BTreeSet<String> =
        named.keys().map(|name| format!("#/components/schemas/{name}")).collect();
    ensure!(named.len() > 80, "{} schemas", named.len());
    let answers = CONTRACT.document["components"]["responses"].as_object().context("no answers")?;
    referred.retain(|name| {
        name.strip_prefix("#/components/responses/").is_none_or(|name| !answers.contains_key(name))
    });
    ensure!(referred == named, "{:?}", referred.symmetric_difference(&named));
    Ok(())
}

/// Every text of the node's sources that has this before it.
fn after<'a>(sources: &'a str, before: &str, found: &mut BTreeSet<&'a str>) {
    for piece in sources.split(before).skip(1) {
        let text = piece.trim_start().trim_start_matches("(").trim_start();
        let text = text.strip_prefix('"').and_then(|text| text.split('"').next());
        let is_code = |text: &&str| text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        found.extend(text.filter(|text| !text.is_empty()).filter(is_code));
    }
}

fn sources(folder: &Path, text: &mut String) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            if !path.ends_with("document") {
                sources(&path, text)?;
            }
        } else {
            let file = std::fs::read_to_string(&path)?;
            text.push_str(file.split("#[cfg(test)]\nmod ").next().unwrap_or_default());
        }
    }
    Ok(())
}

#[test]
fn the_reasons_in_the_document_are_those_in_the_code() -> Result<()> {
    let mut text = String::new();
    for folder in ["src/api", "src/deploy", "src/http"] {
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut text)?;
    }
    let mut used = BTreeSet::new();
    for before in ["missing(", "conflict(", "bad_request(", "code: ", "const CODE_NEEDED: &str ="] {
        after(&text, before, &mut used);
    }
    for piece in text.split("StatusCode::").skip(1) {
        if let Some((_, rest)) = piece.split_once(',') {
            let rest = rest.trim_start();
            if let Some(text) = rest.strip_prefix('"').and_then(|rest| rest.split('"').next()) {
                used.insert(text);
            }
        }
    }
    used.retain(|text| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
    });
    let mut documented = BTreeSet::new();
    for (path, operations) in CONTRACT.document["paths"].as_object().context("no paths")? {
        let operations = operations.as_object().into_iter().flatten();
        let answers = operations.filter_map(|(_, one)| one["responses"].as_object());
        for answer in answers.filter(|_| !path.starts_with("/v2")).flatten() {
            let codes = CONTRACT.resolved(answer.1)["x-codes"].as_array().into_iter().flatten();
            documented.extend(codes.filter_map(Value::as_str));
        }
    }
    // Of no operation.
    let nowhere = ["no_such_path", "method_not_allowed"];
    // Of the registry's operations, which say it in their own words.
    let registry = ["offset_mismatch", "missing_reference", "manifest_too_long"];
    let unsaid: Vec<_> = used
        .iter()
        .filter(|code| !documented.contains(*code) && !nowhere.contains(code))
        .filter(|code| !registry.contains(code))
        .collect();
    ensure!(unsaid.is_empty(), "no operation says that it may refuse with {unsaid:?}");
    let unused: Vec<_> =
        documented.iter().filter(|code| !text.contains(&format!("\"{code}\""))).collect();
    ensure!(unused.is_empty(), "nothing refuses with {unused:?}");
    ensure!(used.len() > 100, "{} reasons found", used.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn anyone_gets_the_document_and_only_once() -> Result<()> {
    let node = Node::start().await?;
    let mut tags = BTreeSet::new();
    for path in ["/api/v1/openapi.json", "/openapi.json"] {
        let url = format!("{}{path}", node.url);
        let answer = node.http.get(&url).send().await?;
        ensure!(answer.status() == StatusCode::OK, "{}", answer.status());
        let etag = answer.headers().get(header::ETAG).context("no ETag")?.to_str()?.to_owned();
        ensure!(etag.starts_with('"') && etag.len() == 34, "{etag}");
        let document: Value = answer.json().await?;
        ensure!(document == CONTRACT.document, "another document is served");
        ensure!(document["openapi"].as_str().is_some_and(|text| text.starts_with("3.1.")));
        let again = node.http.get(&url).header(header::IF_NONE_MATCH, &etag).send().await?;
        ensure!(again.status() == StatusCode::NOT_MODIFIED, "{}", again.status());
        ensure!(again.headers().get(header::ETAG).is_some_and(|tag| *tag == *etag));
        let other = node.http.get(&url).header(header::IF_NONE_MATCH, "\"other\"").send().await?;
        ensure!(other.status() == StatusCode::OK, "{}", other.status());
        let head = node.http.head(&url).send().await?;
        ensure!(head.status() == StatusCode::OK && head.bytes().await?.is_empty());
        tags.insert(etag);
    }
    ensure!(tags.len() == 1, "{tags:?}");

    let page = node.http.get(format!("{}/api/docs", node.url)).send().await?;
    ensure!(page.status() == StatusCode::OK, "{}", page.status());
    let header =
        |name: &str| page.headers().get(name).and_then(|it| it.to_str().ok()).unwrap_or("");
    ensure!(header("content-type") == "text/html; charset=utf-8", "{}", header("content-type"));
    ensure!(header("x-content-type-options") == "nosniff");
    let policy = header("content-security-policy").to_owned();
    ensure!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    let text = page.text().await?;
    let style = text.split("<style>").nth(1).and_then(|rest| rest.split("</style>").next());
    let style = style.context("no style")?;
    let hash = base64::Engine::encode(
        &base64::engine::general_purpose::STANDARD,
        <sha2::Sha256 as sha2::Digest>::digest(style.as_bytes()),
    );
    ensure!(policy.contains(&format!("'sha256-{hash}'")), "{policy} forbids the page's style");
    ensure!(text.contains("/api/v1/images/{image}/star") && text.contains("curl"));
    let url = format!("{}/api/docs?q=rollback", node.url);
    let found = node.http.get(&url).send().await?.text().await?;
    ensure!(found.contains("/rollback") && !found.contains("/api/v1/backup<"), "{found}");
    let long = format!("{}/api/docs?q={}", node.url, "x".repeat(200));
    let refused = node.http.request(Method::GET, long).send().await?;
    ensure!(refused.status() == StatusCode::BAD_REQUEST, "{}", refused.status());
    node.server.stop().await
}

#[test]
fn every_example_of_a_body_is_one() -> Result<()> {
    for (path, operations) in CONTRACT.document["paths"].as_object().context("no paths")? {
        for (method, operation) in operations.as_object().context("no operations")? {
            let body = &operation["requestBody"]["content"]["application/json"];
            if let Some(schema) = body.get("schema") {
                let sample = shoal_node::api::document::sample(&CONTRACT.document, schema);
                CONTRACT.check_request(method, path, &sample)?;
            }
        }
    }
    Ok(())
}
