//! `null`, where a field may be left out, is read as if it were: clients that write whole objects send
//! it for what they do not know.
//!
//! Non-goal: fields that are an `Option`; these read `null` by themselves.

use schemars::Schema;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

/// Reads a field that has a default. Its type's schema says so by [`or_null`].
pub(crate) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Every field that may be left out may be `null`.
pub(crate) fn or_null(schema: &mut Schema) {
    let required: Vec<Value> =
        schema.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
    let Some(Value::Object(fields)) = schema.get_mut("properties") else { return };
    for (name, field) in fields.iter_mut() {
        let kind = field.get("type").and_then(Value::as_str).map(str::to_owned);
        let may_be_missing = required.iter().all(|one| one != name);
        if let Some(kind) = kind.filter(|_| may_be_missing) {
            field["type"] = json!([kind, "null"]);
        }
    }
}

#[cfg(test)]
mod tests {
    use schemars::JsonSchema;

    use super::*;

    #[derive(Debug, Deserialize, JsonSchema)]
    #[schemars(transform = or_null)]
    struct Order {
        name: String,
        #[serde(default, deserialize_with = "or_default")]
        tags: Vec<String>,
        #[serde(default, deserialize_with = "or_default")]
        count: u32,
    }

    #[test]
    fn null_is_no_value_where_none_is_needed() {
        for text in [r#"{"name":"a"}"#, r#"{"name":"a","tags":null,"count":null}"#] {
            let order: Order = serde_json::from_str(text).unwrap();
            assert_eq!((&*order.name, order.tags.len(), order.count), ("a", 0, 0), "{text}");
        }
        assert!(serde_json::from_str::<Order>(r#"{"name":null}"#).is_err());
        let schema = schemars::schema_for!(Order);
        let kind = |field: &str| schema.pointer(&format!("/properties/{field}/type")).cloned();
        assert_eq!(kind("name"), Some(json!("string")));
        assert_eq!(kind("tags"), Some(json!(["array", "null"])));
        assert_eq!(kind("count"), Some(json!(["integer", "null"])));
    }
}
