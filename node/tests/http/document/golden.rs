//! The whole API in one file, so that every change of it shows in a diff.
//!
//! `SHOAL_WRITE_GOLDEN=1 cargo test … the_api_is_the_one_of_the_golden_file` writes it anew.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::contract::CONTRACT;

const GOLDEN: &str = include_str!("golden.txt");

/// A schema in a word or two.
fn kind(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str() {
        return name.rsplit('/').next().unwrap_or_default().to_owned();
    }
    for way in ["anyOf", "oneOf"] {
        if let Some(ways) = schema[way].as_array() {
            return ways.iter().map(kind).collect::<Vec<_>>().join("|");
        }
    }
    if let Some(only) = schema.get("const") {
        return only.to_string();
    }
    if let Some(values) = schema["enum"].as_array() {
        return values.iter().map(Value::to_string).collect::<Vec<_>>().join("|");
    }
    let names: Vec<&str> = match &schema["type"] {
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
        Value::String(name) => vec![name],
        _ => vec!["any"],
    };
    let named = names.iter().map(|name| match *name {
        "array" => format!("[{}]", kind(&schema["items"])),
        "object" if schema["additionalProperties"].is_object() => {
            format!("{{{}}}", kind(&schema["additionalProperties"]))
        }
        "integer" | "number" | "string" => match schema["format"].as_str() {
            Some(format) => format.to_owned(),
            None => (*name).to_owned(),
        },
        name => name.to_owned(),
    });
    named.collect::<Vec<_>>().join("|")
}

fn contents(content: &Value) -> String {
    let kinds = content.as_object().into_iter().flatten().map(|(media, content)| {
        match content.get("schema") {
            Some(schema) if media == "application/json" => kind(schema),
            Some(schema) => format!("{media} {}", kind(schema)),
            None => media.clone(),
        }
    });
    kinds.collect::<Vec<_>>().join(", ")
}

fn fields(text: &mut String, schema: &Value, depth: usize) -> Result<()> {
    let indent = "  ".repeat(depth);
    let required = schema["required"].as_array();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let always = required.is_some_and(|all| all.iter().any(|one| one == name));
        writeln!(text, "{indent}{name}{} {}", if always { "*" } else { "" }, kind(field))?;
    }
    for way in schema["oneOf"].as_array().into_iter().flatten() {
        writeln!(text, "{indent}or {}", kind(way))?;
        fields(text, way, depth + 1)?;
    }
    Ok(())
}

fn normal(document: &Value) -> Result<String> {
    let mut text = String::new();
    for (path, operations) in document["paths"].as_object().context("no paths")? {
        for (method, operation) in operations.as_object().context("no operations")? {
            let id = operation["operationId"].as_str().unwrap_or_default();
            writeln!(text, "{} {path} ({id})", method.to_uppercase())?;
            let ways = operation["security"].as_array().context("no security")?.iter();
            let ways = ways
                .filter_map(Value::as_object)
                .map(|way| way.keys().next().map_or("nobody", String::as_str));
            writeln!(text, "  by {}", ways.collect::<Vec<_>>().join(" "))?;
            for one in operation["parameters"].as_array().into_iter().flatten() {
                let (place, name) = (&one["in"], one["name"].as_str().unwrap_or_default());
                let always = if one["required"] == true { "*" } else { "" };
                let place = place.as_str().unwrap_or_default();
                writeln!(text, "  {place} {name}{always} {}", kind(&one["schema"]))?;
            }
            let body = contents(&operation["requestBody"]["content"]);
            if !body.is_empty() {
                writeln!(text, "  takes {body}")?;
            }
            let mut usual = Vec::new();
            for (status, answer) in operation["responses"].as_object().context("no answers")? {
                if let Some(name) = answer["$ref"].as_str() {
                    usual.push(name.rsplit('/').next().unwrap_or_default());
                    continue;
                }
                let what = match answer["x-codes"].as_array() {
                    Some(codes) => {
                        codes.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ")
                    }
                    None => contents(&answer["content"]),
                };
                writeln!(text, "{}", format!("  {status} {what}").trim_end())?;
            }
            if !usual.is_empty() {
                writeln!(text, "  {}", usual.join(" "))?;
            }
        }
    }
    for (name, answer) in document["components"]["responses"].as_object().context("no answers")? {
        let codes = answer["x-codes"].as_array().into_iter().flatten().filter_map(Value::as_str);
        writeln!(text, "answer {name} {}", codes.collect::<Vec<_>>().join(" "))?;
    }
    for (name, schema) in document["components"]["schemas"].as_object().context("no schemas")? {
        let whole = if schema.get("properties").is_some() || schema.get("oneOf").is_some() {
            String::new()
        } else {
            format!(" {}", kind(schema))
        };
        writeln!(text, "schema {name}{whole}")?;
        fields(&mut text, schema, 1)?;
    }
    Ok(text)
}

#[test]
fn the_api_is_the_one_of_the_golden_file() -> Result<()> {
    let found = normal(&CONTRACT.document)?;
    if std::env::var_os("SHOAL_WRITE_GOLDEN").is_some() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/http/document/golden.txt");
        std::fs::write(file, &found)?;
        return Ok(());
    }
    let differ = found.lines().zip(GOLDEN.lines()).position(|(found, wanted)| found != wanted);
    let at = differ.unwrap_or(found.lines().count().min(GOLDEN.lines().count()));
    let around =
        |text: &str| text.lines().skip(at.saturating_sub(3)).take(8).collect::<Vec<_>>().join("\n");
    ensure!(
        found == GOLDEN,
        "the API differs from golden.txt at line {}:\n{}\n--- instead of\n{}\n\
         If that is meant: SHOAL_WRITE_GOLDEN=1, and look at the diff.",
        at + 1,
        around(&found),
        around(GOLDEN),
    );
    Ok(())
}
