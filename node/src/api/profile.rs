//! What is said of an image: checked, and put together with what was said before.
//!
//! Invariant: what passes here fits into the metadata, and the format that is kept of a disk is one
//! that it can be downloaded in.
//! Non-goals: who may say it, and who may see the image; see `images`.

use std::collections::BTreeMap;

use shoal_api::{CreateImage, UpdateImage};
use shoal_content::Labels;
use shoal_formats::Target;
use shoal_metadata::{ImageDescription, ImageKind, ImageNote, ImageProfile};

use crate::http::problem::Problem;

/// Of what every listing carries, in characters.
const TEXT_CHARS_MAX: usize = 255;
const DESCRIPTION_CHARS_MAX: usize = 4096;
const ANNOTATIONS_MAX: usize = 256;
const ANNOTATION_KEY_BYTES_MAX: usize = 256;
const ANNOTATION_VALUE_BYTES_MAX: usize = 4096;
/// Of all keys and values of one image (the metadata hold this too).
const ANNOTATIONS_BYTES_MAX: usize = 64 * 1024;

const IMAGE_TYPES: [&str; 3] = ["os_base", "application", "snapshot"];
/// The formats of what docker and its kin push and pull.
const CONTAINER_FORMATS: [&str; 2] = ["docker", "oci"];
const ARCHITECTURE_DEFAULT: &str = "x86_64";

/// Of an image that is to be made.
#[derive(Debug)]
pub struct Described {
    pub kind: ImageKind,
    pub profile: ImageProfile,
    pub note: ImageNote,
}

/// # Errors
/// Where something has no meaning, or is too long.
pub fn described(request: CreateImage) -> Result<Described, Problem> {
    let kind = kind_of(&request.format);
    let architecture = Some(request.architecture).filter(|text| !text.is_empty());
    let profile = ImageProfile {
        display_name: request.display_name,
        description: request.description,
        image_type: image_type(request.image_type)?,
        os_type: request.os_type,
        os_version: request.os_version,
        architecture: architecture.unwrap_or_else(|| ARCHITECTURE_DEFAULT.to_owned()),
        format: format(&request.format, kind)?,
        visibility: request.visibility,
        min_cpu_cores: request.min_cpu_cores,
        min_memory_mb: request.min_memory_mb,
        min_disk_gb: request.min_disk_gb,
        labels: labels(request.labels)?,
    };
    check_texts(&profile)?;
    let note = ImageNote {
        recommended_cpu_cores: request.recommended_cpu_cores,
        recommended_memory_mb: request.recommended_memory_mb,
        recommended_disk_gb: request.recommended_disk_gb,
        annotations: annotations(request.annotations)?,
        updated_by: String::new(),
    };
    Ok(Described { kind, profile, note })
}

/// What is said from now on, of which `by` has changed something.
///
/// # Errors
/// As of [`described`], for what is changed.
pub fn changed(
    kind: ImageKind,
    old: ImageDescription,
    request: UpdateImage,
    by: String,
) -> Result<ImageDescription, Problem> {
    let ImageDescription { profile: old, note } = old;
    // What it was before there were rules for it may be sent back with the rest.
    let new_format = request.format.filter(|text| *text != old.format);
    let format = new_format.map(|text| format(&text, kind)).transpose()?;
    let new_type = request.image_type.filter(|text| *text != old.image_type);
    let profile = ImageProfile {
        display_name: request.display_name.unwrap_or(old.display_name),
        description: request.description.unwrap_or(old.description),
        image_type: new_type.map(image_type).transpose()?.unwrap_or(old.image_type),
        os_type: request.os_type.unwrap_or(old.os_type),
        os_version: request.os_version.unwrap_or(old.os_version),
        architecture: request.architecture.unwrap_or(old.architecture),
        format: format.unwrap_or(old.format),
        visibility: old.visibility,
        min_cpu_cores: request.min_cpu_cores.unwrap_or(old.min_cpu_cores),
        min_memory_mb: request.min_memory_mb.unwrap_or(old.min_memory_mb),
        min_disk_gb: request.min_disk_gb.unwrap_or(old.min_disk_gb),
        labels: request.labels.map(labels).transpose()?.unwrap_or(old.labels),
    };
    check_texts(&profile)?;
    let cores = request.recommended_cpu_cores.unwrap_or(note.recommended_cpu_cores);
    let annotations = request.annotations.map(annotations).transpose()?;
    let note = ImageNote {
        recommended_cpu_cores: cores,
        recommended_memory_mb: request.recommended_memory_mb.unwrap_or(note.recommended_memory_mb),
        recommended_disk_gb: request.recommended_disk_gb.unwrap_or(note.recommended_disk_gb),
        annotations: annotations.unwrap_or(note.annotations),
        updated_by: by,
    };
    Ok(ImageDescription { profile, note })
}

fn kind_of(format: &str) -> ImageKind {
    match CONTAINER_FORMATS.iter().any(|known| known.eq_ignore_ascii_case(format)) {
        true => ImageKind::Container,
        false => ImageKind::Disk,
    }
}

/// By the name that downloads know.
fn format(text: &str, kind: ImageKind) -> Result<String, Problem> {
    match kind {
        ImageKind::Disk if text.is_empty() => Ok(Target::Qcow2.to_string()),
        ImageKind::Disk => Ok(text.parse::<Target>()?.to_string()),
        ImageKind::Container if text.is_empty() || kind_of(text) == kind => {
            Ok(text.to_ascii_lowercase())
        }
        ImageKind::Container => {
            let text = "the format of a container image is docker or oci";
            Err(Problem::bad_request("format_invalid", text))
        }
    }
}

fn image_type(text: String) -> Result<String, Problem> {
    if text.is_empty() || IMAGE_TYPES.contains(&text.as_str()) {
        return Ok(text);
    }
    let text = format!("image_type is {}, or empty", IMAGE_TYPES.join(", "));
    Err(Problem::bad_request("image_type_invalid", text))
}

fn labels(map: BTreeMap<String, String>) -> Result<Labels, Problem> {
    let labels = Labels::try_from(map);
    labels.map_err(|error| Problem::bad_request("labels_invalid", error.to_string()))
}

/// Longer than labels may be: they hold what programs note of an image.
fn annotations(map: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Problem> {
    let fits = |(key, value): (&String, &String)| {
        !key.is_empty()
            && key.len() <= ANNOTATION_KEY_BYTES_MAX
            && value.len() <= ANNOTATION_VALUE_BYTES_MAX
    };
    let bytes: usize = map.iter().map(|(key, value)| key.len() + value.len()).sum();
    if map.len() <= ANNOTATIONS_MAX && bytes <= ANNOTATIONS_BYTES_MAX && map.iter().all(fits) {
        return Ok(map);
    }
    let text = format!(
        "at most {ANNOTATIONS_MAX} annotations of {ANNOTATIONS_BYTES_MAX} bytes together, each key \
         of 1 to {ANNOTATION_KEY_BYTES_MAX} bytes and value of up to {ANNOTATION_VALUE_BYTES_MAX}"
    );
    Err(Problem::bad_request("annotations_invalid", text))
}

fn check_texts(profile: &ImageProfile) -> Result<(), Problem> {
    let texts = [
        ("display_name", &profile.display_name, TEXT_CHARS_MAX),
        ("description", &profile.description, DESCRIPTION_CHARS_MAX),
        ("os_type", &profile.os_type, TEXT_CHARS_MAX),
        ("os_version", &profile.os_version, TEXT_CHARS_MAX),
        ("architecture", &profile.architecture, TEXT_CHARS_MAX),
    ];
    for (name, text, most) in texts {
        if text.chars().count() > most {
            let text = format!("{name} has at most {most} characters");
            return Err(Problem::bad_request("text_too_long", text));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_is_kept_by_the_name_that_downloads_know() {
        let kept = |text, kind| format(text, kind).map_err(|problem| problem.code);
        for (given, wanted) in [("", "qcow2"), ("QCOW2", "qcow2"), ("vpc", "vhd"), ("iso", "raw")] {
            assert_eq!(kept(given, ImageKind::Disk).as_deref(), Ok(wanted), "{given}");
        }
        for (given, wanted) in [("", ""), ("Docker", "docker"), ("oci", "oci")] {
            assert_eq!(kept(given, ImageKind::Container).as_deref(), Ok(wanted), "{given}");
        }
        for (given, kind) in [
            ("banana", ImageKind::Disk),
            ("docker", ImageKind::Disk),
            ("qcow2", ImageKind::Container),
        ] {
            assert_eq!(kept(given, kind), Err("format_invalid"), "{given}");
        }
    }

    #[test]
    fn annotations_may_be_longer_than_labels_and_not_longer_than_the_metadata_take() {
        let many = |count: usize, bytes: usize| {
            let pair = |number: usize| (format!("key-{number:03}"), "x".repeat(bytes));
            annotations((0..count).map(pair).collect()).map_err(|problem| problem.code)
        };
        for (count, bytes) in [(256, 100), (1, 4096), (15, 4096), (0, 0)] {
            assert_eq!(many(count, bytes).map(|kept| kept.len()), Ok(count), "{bytes}");
        }
        for (count, bytes) in [(257, 1), (1, 4097), (16, 4096)] {
            assert_eq!(many(count, bytes), Err("annotations_invalid"), "{count} of {bytes}");
        }
        let nameless = BTreeMap::from([(String::new(), "value".to_owned())]);
        assert!(annotations(nameless).is_err());
    }
}
