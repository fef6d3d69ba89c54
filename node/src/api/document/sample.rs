//! Examples of JSON out of schemas: what has to be there, with values that are taken.

use serde_json::{Map, Value, json};

/// Schemas within schemas; deeper ones are `null`.
const DEPTH_MAX: usize = 12;

/// The schema that is meant.
pub fn resolved<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    let name = schema["$ref"].as_str().and_then(|text| text.rsplit('/').next());
    name.map_or(schema, |name| &document["components"]["schemas"][name])
}

/// What a client could send: the required fields, or the first few where none is.
pub fn sample(document: &Value, schema: &Value) -> Value {
    of(document, schema, 0)
}

fn of(document: &Value, schema: &Value, depth: usize) -> Value {
    if depth > DEPTH_MAX {
        return Value::Null;
    }
    let schema = resolved(document, schema);
    let examples = schema["examples"].get(0).or_else(|| schema.get("const"));
    if let Some(known) = examples.or_else(|| schema["enum"].get(0)) {
        return known.clone();
    }
    for way in ["oneOf", "anyOf"] {
        if let Some(first) = schema[way].get(0) {
            return of(document, first, depth + 1);
        }
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds.first().and_then(Value::as_str),
        kind => kind.as_str(),
    };
    match kind {
        Some("object") => object(document, schema, depth),
        Some("array") => json!([]),
        Some("integer") => {
            schema.get("minimum").cloned().filter(|least| *least != 0).unwrap_or(json!(1))
        }
        Some("number") => json!(1.0),
        Some("boolean") => json!(true),
        Some("string") if schema["format"] == "password" => json!("…"),
        Some("string") => schema.get("default").cloned().unwrap_or(json!("…")),
        _ => Value::Null,
    }
}

fn object(document: &Value, schema: &Value, depth: usize) -> Value {
    const SHOWN: usize = 3;
    let Some(fields) = schema["properties"].as_object() else { return json!({}) };
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let shown = fields.iter().filter(|(name, _)| required.contains(&name.as_str()));
    let few = fields.iter().take(if required.is_empty() { SHOWN } else { 0 });
    let made: Map<String, Value> = shown
        .chain(few)
        .map(|(name, field)| (name.clone(), of(document, field, depth + 1)))
        .collect();
    Value::Object(made)
}
