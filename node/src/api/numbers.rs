//! The numbers of versions, as people give them.

use shoal_content::TagName;

use super::problem::conflict;
use super::tags::LATEST;
use crate::http::problem::Problem;

/// With `latest`, as many as the metadata take in one command.
const TAGS_MAX: usize = 63;
const NUMBER_BYTES_MAX: usize = 128;

pub fn number_taken(number: &str) -> Problem {
    let text = format!("the image has a version {number} already; choose another number");
    conflict("version_exists", text)
}

/// The number of a version that is to be made, and the tags that it is to have.
///
/// # Errors
/// What is wrong with them.
pub fn check_names(number: &str, tags: &[TagName]) -> Result<(), Problem> {
    check_number(number)?;
    if tags.len() > TAGS_MAX {
        let text = format!("at most {TAGS_MAX} tags at once");
        return Err(Problem::bad_request("too_many_tags", text));
    }
    Ok(())
}

/// A version number is a tag's text, so that it can stand wherever a tag can: Semantic Versioning but for
/// build metadata, which have no part in the order of versions.
fn check_number(number: &str) -> Result<(), Problem> {
    let is_good = |number: &str| {
        let good = number.len() <= NUMBER_BYTES_MAX && number.parse::<TagName>().is_ok();
        good && number != LATEST
    };
    if is_good(number) {
        return Ok(());
    }
    let text = match number.split_once('+') {
        Some((before, _)) if is_good(before) => format!(
            "a version can be pulled by its number as by a tag, which has no '+'; call it {before}, as what \
             stands behind '+' has no part in the order of versions, and say the build in build_info"
        ),
        _ => "a version is letters, digits, '_', '.' and '-', for instance 1.0.1, and not 'latest'"
            .to_owned(),
    };
    Err(Problem::bad_request("version_invalid", text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_a_tag_and_build_metadata_are_told_where_to_go() {
        for number in ["1.0.1", "v2", "1.2.3-rc.1", "22.04.1", "nightly", &"1".repeat(128)] {
            assert!(check_number(number).is_ok(), "{number}");
        }
        for number in ["", "latest", "1 0", "a/b", "latest+1", "+1", &"1".repeat(129)] {
            assert!(check_number(number).unwrap_err().message.contains("letters"), "{number}");
        }
        let refused = check_number("1.2.3+build.5").unwrap_err();
        assert!(refused.message.contains("call it 1.2.3, "));
    }
}
