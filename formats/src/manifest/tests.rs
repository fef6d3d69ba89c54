//! What is read out of manifests, and what is refused.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn digest(n: u8) -> String {
    Digest::sha256([n; 32]).to_string()
}

fn image() -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.example", "digest": digest(1), "size": 2},
        "layers": [
            {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest(2), "size": 3},
            {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest(2), "size": 3},
        ],
        "subject": {"mediaType": media_type::OCI_MANIFEST, "digest": digest(9), "size": 7},
        "annotations": {"a": "b"},
        "unknown": {"is": ["ignored"]},
    })
}

fn parse(value: &Value) -> Result<ParsedManifest, ManifestError> {
    parse_manifest(None, &serde_json::to_vec(value).unwrap())
}

#[test]
fn reads_an_image_manifest() {
    let parsed = parse(&image()).unwrap();
    assert_eq!(parsed.kind, ManifestKind::Image);
    assert_eq!(parsed.references.len(), 2);
    assert_eq!(parsed.subject, Some(digest(9).parse().unwrap()));
    assert_eq!(parsed.artifact_type.as_deref(), Some("application/vnd.example"));
    assert_eq!(parsed.annotations["a"], "b");
}

#[test]
fn an_artifact_type_of_its_own_wins_over_the_configs() {
    let mut value = image();
    value["artifactType"] = json!("application/vnd.other");
    assert_eq!(parse(&value).unwrap().artifact_type.as_deref(), Some("application/vnd.other"));
}

#[test]
fn empty_layers_and_an_empty_index_are_fine() {
    let mut value = image();
    value["layers"] = json!([]);
    assert_eq!(parse(&value).unwrap().references.len(), 1);
    let index = json!({"schemaVersion": 2, "manifests": []});
    let parsed = parse(&index).unwrap();
    assert_eq!((parsed.kind, parsed.references.len()), (ManifestKind::Index, 0));
    assert_eq!(parsed.media_type, media_type::OCI_INDEX);
}

#[test]
fn a_layer_that_may_not_be_pushed_is_no_reference() {
    for media_type in [
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip+encrypted",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    ] {
        let mut value = image();
        value["layers"][0]["mediaType"] = json!(media_type);
        value["layers"][0]["digest"] = json!(digest(7));
        let absent = Reference::Blob { digest: digest(7).parse().unwrap(), size: 3 };
        let parsed = parse(&value).unwrap();
        assert!(!parsed.references.contains(&absent));
        assert_eq!(parsed.foreign_layers, [absent].into());
        assert!(parse(&image()).unwrap().foreign_layers.is_empty());
    }
    // What only sounds like one is a layer like others.
    let mut value = image();
    value["layers"][0]["mediaType"] = json!("application/vnd.acme.foreign.data.v1");
    value["layers"][0]["digest"] = json!(digest(7));
    let layer = Reference::Blob { digest: digest(7).parse().unwrap(), size: 3 };
    assert!(parse(&value).unwrap().references.contains(&layer));
}

#[test]
fn an_index_refers_to_manifests() {
    let index = json!({
        "schemaVersion": 2,
        "mediaType": media_type::DOCKER_LIST,
        "manifests": [{"mediaType": media_type::DOCKER_MANIFEST, "digest": digest(3), "size": 5}],
    });
    let parsed = parse(&index).unwrap();
    let child = Reference::Manifest { digest: digest(3).parse().unwrap(), size: 5 };
    assert_eq!(parsed.references, BTreeSet::from([child]));
    assert_eq!(parsed.artifact_type, None);
}

#[test]
fn contradictions_are_refused() {
    let bytes = serde_json::to_vec(&image()).unwrap();
    let differ = parse_manifest(Some(media_type::DOCKER_MANIFEST), &bytes);
    assert!(matches!(differ, Err(ManifestError::MediaTypesDiffer { .. })));
    assert!(parse_manifest(Some(media_type::OCI_MANIFEST), &bytes).is_ok());
    let broken = |change: fn(&mut Value)| {
        let mut value = image();
        change(&mut value);
        parse(&value).unwrap_err()
    };
    assert_eq!(broken(|v| v["schemaVersion"] = json!(1)), ManifestError::SchemaVersion(1));
    assert!(matches!(broken(|v| v["mediaType"] = json!("text/html")), ManifestError::MediaType(_)));
    assert!(matches!(broken(|v| v["manifests"] = json!([])), ManifestError::Shape(_)));
    let without_layers = |v: &mut Value| drop(v.as_object_mut().unwrap().remove("layers"));
    assert!(matches!(broken(without_layers), ManifestError::Shape("layers")));
    let bad_digest = broken(|v| v["config"]["digest"] = json!("sha256:x"));
    assert!(matches!(bad_digest, ManifestError::Digest { .. }));
    assert!(matches!(broken(|v| v["config"]["size"] = json!(-1)), ManifestError::Json(_)));
    let twice = br#"{"schemaVersion":2,"schemaVersion":2}"#;
    assert!(matches!(parse_manifest(None, twice), Err(ManifestError::Json(_))));
}

#[test]
fn null_is_an_empty_list() {
    let mut value = image();
    value["layers"] = Value::Null;
    value["manifests"] = Value::Null;
    assert_eq!(parse(&value).unwrap().references.len(), 1);
    let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": null});
    assert_eq!(parse(&index).unwrap().references, BTreeSet::new());
}

#[test]
fn an_index_may_list_what_is_no_manifest() {
    let layer = "application/vnd.oci.image.layer.v1.tar+gzip";
    let index = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_INDEX,
        "manifests": [{"mediaType": layer, "digest": digest(3), "size": 5}],
    });
    let child = Reference::Blob { digest: digest(3).parse().unwrap(), size: 5 };
    assert_eq!(parse(&index).unwrap().references, BTreeSet::from([child]));
}

#[test]
fn size_and_count_are_bounded() {
    let long = vec![b' '; MANIFEST_BYTES_MAX + 1];
    assert_eq!(parse_manifest(None, &long), Err(ManifestError::TooLong));
    let children: Vec<Value> = (0..=REFERENCES_MAX)
        .map(|n| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&(n as u64).to_le_bytes());
            json!({"digest": Digest::sha256(bytes).to_string(), "size": 1})
        })
        .collect();
    let many = json!({"schemaVersion": 2, "manifests": children});
    assert_eq!(parse(&many), Err(ManifestError::TooManyReferences));
    let mut wordy = image();
    wordy["artifactType"] = json!("x".repeat(ARTIFACT_TYPE_BYTES_MAX));
    assert!(parse(&wordy).is_ok());
    wordy["artifactType"] = json!("x".repeat(ARTIFACT_TYPE_BYTES_MAX + 1));
    assert_eq!(parse(&wordy), Err(ManifestError::ArtifactType));
}

proptest! {
    #[test]
    fn hostile_bytes_are_refused_without_a_panic(
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let mut bytes = serde_json::to_vec(&image()).unwrap();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let first = parse_manifest(None, &bytes);
        prop_assert_eq!(first, parse_manifest(None, &bytes));
    }
}
