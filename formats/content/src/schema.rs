//! What the words look like in JSON, for the document that a node publishes of its API.
//!
//! Invariant: a pattern takes whatever is written; parsing takes some further forms of UUIDs besides.
//! Each example is written like that itself, which is tested here.
//! Non-goal: to check anything; parsing does.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::{
    AccountName, ClusterId, DeploymentId, Digest, ImageId, ImageReference, InstanceName, NodeId,
    PeerId, Priority, ProjectName, RecipeId, RepositoryName, ScanId, TagName, Timestamp,
    TransferId, UploadId, VersionId, Zone,
};

/// One path component of a name.
macro_rules! component {
    () => {
        "[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*"
    };
}

/// A UUID, with or without its hyphens.
macro_rules! uuid {
    () => {
        "[0-9a-fA-F]{8}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{4}-?[0-9a-fA-F]{12}$"
    };
}

/// Texts: type, what it is, pattern, longest, and an example.
macro_rules! texts {
    ($($name:ident: $about:literal, $pattern:expr, $most:literal, $example:expr;)*) => {
        $(
            impl JsonSchema for $name {
                fn schema_name() -> Cow<'static, str> {
                    stringify!($name).into()
                }

                fn schema_id() -> Cow<'static, str> {
                    concat!("shoal_content::", stringify!($name)).into()
                }

                fn json_schema(_: &mut SchemaGenerator) -> Schema {
                    json_schema!({
                        "type": "string",
                        "description": $about,
                        "pattern": $pattern,
                        "maxLength": $most,
                        "examples": [$example],
                    })
                }
            }
        )*

        #[cfg(test)]
        mod examples {
            use super::*;

            #[test]
            fn every_example_is_one() {
                $(
                    let parsed: Result<$name, _> = $example.parse();
                    let text = parsed.as_ref().map(ToString::to_string);
                    assert_eq!(text.as_deref(), Ok($example), stringify!($name));
                    assert!($example.len() <= $most, stringify!($name));
                )*
            }
        }
    };
}

texts! {
    AccountName: "The name of a user, an organization, a group or a robot.",
        concat!("^", component!(), "$"), 64, "alice";
    ProjectName: "The first part of a repository's name.",
        concat!("^", component!(), "$"), 200, "team";
    RepositoryName: "The name of an image; its first part is its project.",
        concat!("^", component!(), "(/", component!(), ")*$"), 200, "team/ubuntu";
    TagName: "A movable name for a version.",
        "^[a-zA-Z0-9_][a-zA-Z0-9._-]*$", 128, "latest";
    InstanceName: "What the system that runs it calls a virtual machine.",
        "^[a-zA-Z0-9][a-zA-Z0-9_.:-]*$", 128, "vm-17";
    ImageReference: "`NAME`, `NAME:TAG` or `NAME@DIGEST`; a bare name means the tag `latest`.",
        concat!("^", component!(), "(/", component!(), ")*(:[a-zA-Z0-9_][a-zA-Z0-9._-]*|@sha[0-9]+:[0-9a-f]+)?$"),
        464, "team/ubuntu:22.04";
    Digest: "An algorithm, a colon and hexadecimal digits.",
        "^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$", 135,
        "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
    ClusterId: "The whole cluster.", concat!("^cluster-", uuid!()), 44,
        "cluster-01890a5d73a77c0ab4f5d3c1c8b1a2f0";
    ImageId: "One image; survives a rename.", concat!("^img-", uuid!()), 40,
        "img-01890a5d73a77c0ab4f5d3c1c8b1a2f1";
    VersionId: "One immutable version of an image.", concat!("^ver-", uuid!()), 40,
        "ver-01890a5d73a77c0ab4f5d3c1c8b1a2f2";
    UploadId: "One upload session.", concat!("^upload-", uuid!()), 43,
        "upload-01890a5d73a77c0ab4f5d3c1c8b1a2f3";
    DeploymentId: "One deployment order.", concat!("^dep-", uuid!()), 40,
        "dep-01890a5d73a77c0ab4f5d3c1c8b1a2f4";
    ScanId: "One order to look for vulnerabilities in a version.", concat!("^scan-", uuid!()), 41,
        "scan-01890a5d73a77c0ab4f5d3c1c8b1a2f6";
    TransferId: "One transfer of one recipe on one agent.", concat!("^transfer-", uuid!()), 45,
        "transfer-01890a5d73a77c0ab4f5d3c1c8b1a2f5";
    PeerId: "An agent or a node, by its Ed25519 public key.", "^[0-9a-fA-F]{64}$", 64,
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    RecipeId: "A recipe, by the BLAKE3 of its encoded bytes.", "^[0-9a-fA-F]{64}$", 64,
        "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
    Zone: "`REGION`, `REGION/ROOM` or `REGION/ROOM/RACK`; empty where it is not known.",
        "^([^/]+(/[^/]+){0,2})?$", 256, "eu/room-1/rack-7";
}

impl JsonSchema for Priority {
    fn schema_name() -> Cow<'static, str> {
        "Priority".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "Which of several orders a host carries out first.",
            "enum": ["low", "normal", "high", "urgent"],
        })
    }
}

impl JsonSchema for NodeId {
    fn schema_name() -> Cow<'static, str> {
        "NodeId".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "format": "uint64", "minimum": 1, "examples": [1] })
    }
}

impl JsonSchema for Timestamp {
    fn schema_name() -> Cow<'static, str> {
        "Timestamp".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "integer",
            "format": "uint64",
            "minimum": 0,
            "description": "Milliseconds since 1970-01-01T00:00:00Z.",
        })
    }
}
