//! A history as text, to be kept and judged again.
//!
//! One line is one operation: what it is about, the client, when it was called and had returned (in
//! nanoseconds of one clock; `-` where nobody knows the outcome), and what it was:
//! ```text
//! tag 0 2 | 5 1200 3400 | set 17
//! manifest 1 17 | 3 2000 - | clear
//! ```
//! Invariant: what is read is what was written.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Context, Result, bail};

use super::history::Register;
use crate::linear::{Action, Operation};

pub type Registers = BTreeMap<Register, Vec<Operation>>;

/// Someone who is no client, such as the one that reads all tags at the end.
const NOBODY: &str = "-";

pub fn to_text(registers: &Registers) -> String {
    let mut text = String::new();
    for (register, operations) in registers {
        let about = match register {
            Register::Tag { repository, tag } => format!("tag {repository} {tag}"),
            Register::Manifest { repository, manifest } => {
                format!("manifest {repository} {manifest}")
            }
        };
        for Operation { client, action, called, returned } in operations {
            let client = match *client {
                usize::MAX => NOBODY.to_owned(),
                number => number.to_string(),
            };
            let returned = returned.map_or_else(|| NOBODY.to_owned(), |at| at.to_string());
            let action = match action {
                Action::Set(value) => format!("set {value}"),
                Action::Saw(Some(value)) => format!("saw {value}"),
                Action::Saw(None) => "saw nothing".to_owned(),
                Action::Clear => "clear".to_owned(),
                Action::Forget(value) => format!("forget {value}"),
                Action::Lacks(value) => format!("lacks {value}"),
            };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{about} | {client} {called} {returned} | {action}");
        }
    }
    text
}

/// # Errors
/// A line that is none of those.
pub fn from_text(text: &str) -> Result<Registers> {
    let mut registers = Registers::new();
    for line in text.lines() {
        let (register, operation) = parse(line).with_context(|| format!("the line '{line}'"))?;
        registers.entry(register).or_default().push(operation);
    }
    Ok(registers)
}

fn parse(line: &str) -> Result<(Register, Operation)> {
    let mut parts = line.split(" | ").map(|part| part.split(' ').collect::<Vec<_>>());
    let mut part = || parts.next().context("three parts");
    let register = match part()?.as_slice() {
        ["tag", repository, tag] => {
            Register::Tag { repository: repository.parse()?, tag: tag.parse()? }
        }
        ["manifest", repository, manifest] => {
            Register::Manifest { repository: repository.parse()?, manifest: manifest.parse()? }
        }
        _ => bail!("a tag or a manifest"),
    };
    let times = part()?;
    let [client, called, returned] = times.as_slice() else { bail!("a client and two times") };
    let client = if *client == NOBODY { usize::MAX } else { client.parse()? };
    let returned = if *returned == NOBODY { None } else { Some(returned.parse()?) };
    let action = match part()?.as_slice() {
        ["set", value] => Action::Set(value.parse()?),
        ["saw", "nothing"] => Action::Saw(None),
        ["saw", value] => Action::Saw(Some(value.parse()?)),
        ["clear"] => Action::Clear,
        ["forget", value] => Action::Forget(value.parse()?),
        ["lacks", value] => Action::Lacks(value.parse()?),
        _ => bail!("an action"),
    };
    Ok((register, Operation { client, action, called: called.parse()?, returned }))
}

#[cfg(test)]
mod tests {
    //! What clients saw of real nodes through faults, and what they would have seen of broken ones.

    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;
    use crate::linear::{Value, Verdict, check};

    /// The first 50 seconds of `./dev chaos --minutes 2 --seed 12 --record FILE`; what had no outcome
    /// then has none.
    const RECORDED: &str = include_str!("../../recorded/chaos-12.txt");
    /// So many changes of a hundred are taken to have no outcome besides. What is known to be right
    /// stays right when less is known.
    const FORGOTTEN_PERCENT: u32 = 10;
    /// How many wrongs of each kind are done to it, each in another place.
    const WRONGS: usize = 40;

    /// With outcomes forgotten.
    fn recorded() -> Registers {
        let mut random = StdRng::seed_from_u64(0);
        let mut registers = from_text(RECORDED).unwrap();
        for operation in registers.values_mut().flatten() {
            let changes = !matches!(operation.action, Action::Saw(_) | Action::Lacks(_));
            if changes && random.random_range(0..100) < FORGOTTEN_PERCENT {
                operation.returned = None;
            }
        }
        registers
    }

    fn tags(registers: &Registers) -> Vec<Vec<Operation>> {
        let tag =
            |(register, _): &(&Register, &Vec<Operation>)| matches!(register, Register::Tag { .. });
        registers.iter().filter(tag).map(|(_, operations)| operations.clone()).collect()
    }

    #[test]
    fn a_history_is_read_as_it_was_written() {
        assert_eq!(to_text(&from_text(RECORDED).unwrap()), RECORDED);
        for line in
            ["", "tag 1 | 1 2 3 | clear", "tag 0 1 | 1 2 3 | sets 1", "tag 0 1 | 1 2 | clear"]
        {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn the_recorded_history_is_linearizable_with_all_that_nobody_knows() {
        let mut unknown = 0;
        for (register, operations) in recorded() {
            assert_eq!(check(None, &operations), Verdict::Linearizable, "{register:?}");
            unknown += operations.iter().filter(|one| one.returned.is_none()).count();
        }
        assert!(unknown >= 60, "only {unknown} operations without an outcome");
    }

    /// A read and what it would have shown had its node not heard of the last change: a value that
    /// was acknowledged to be replaced before the read began, and that nobody sets again.
    fn stale(history: &[Operation], read: &Operation) -> Option<Value> {
        let Action::Saw(Some(_)) = read.action else { return None };
        let sets = |one: &&Operation| matches!(one.action, Action::Set(_));
        let replaced = history.iter().filter(sets).filter(|one| one.returned < Some(read.called));
        let replaced =
            replaced.filter(|one| one.returned.is_some()).max_by_key(|one| one.called)?;
        let gone = |value: Value| {
            let of_it = history.iter().filter(|one| one.action == Action::Set(value));
            let before = |one: &Operation| one.returned.is_some_and(|at| at < replaced.called);
            of_it.clone().count() > 0 && of_it.clone().all(before)
        };
        history
            .iter()
            .filter_map(|one| match one.action {
                Action::Saw(Some(value)) if gone(value) => Some(value),
                _ => None,
            })
            .max()
    }

    #[test]
    fn a_stale_read_in_it_is_found() {
        let mut random = StdRng::seed_from_u64(1);
        let tags = tags(&recorded());
        let mut found = 0;
        for _ in 0..10_000 {
            let mut history = tags[random.random_range(0..tags.len())].clone();
            let at = random.random_range(0..history.len());
            let Some(value) = stale(&history, &history[at].clone()) else { continue };
            history[at].action = Action::Saw(Some(value));
            let verdict = check(None, &history);
            assert!(
                matches!(verdict, Verdict::Violated { .. }),
                "{at} in {history:?}: {verdict:?}"
            );
            found += 1;
            if found == WRONGS {
                return;
            }
        }
        panic!("only {found} reads could be made stale");
    }

    /// Two reads of the same between which there was time and nobody else at work.
    fn quiet(history: &[Operation], first: &Operation) -> Option<(u64, u64)> {
        let Action::Saw(Some(value)) = first.action else { return None };
        let begin = first.returned?;
        let again =
            history.iter().filter(|one| one.action == first.action && one.called > begin + 2);
        let end = again.map(|one| one.called).min()?;
        let until = history.iter().filter(|one| one.action == first.action && one.called == end);
        let until = until.filter_map(|one| one.returned).max()?;
        let at_work = |one: &Operation| {
            let changes = !matches!(one.action, Action::Saw(_) | Action::Lacks(_));
            let may_come = one.action == Action::Set(value) && one.returned.is_none();
            let overlaps = one.called < until && one.returned.is_none_or(|at| at > first.called);
            may_come || (changes && one.returned.is_some() && overlaps)
        };
        (!history.iter().any(at_work)).then_some((begin + 1, end - 1))
    }

    #[test]
    fn an_update_of_a_tag_that_was_acknowledged_and_lost_is_found() {
        let mut random = StdRng::seed_from_u64(2);
        let tags = tags(&recorded());
        let mut found = 0;
        for _ in 0..10_000 {
            let mut history = tags[random.random_range(0..tags.len())].clone();
            let at = random.random_range(0..history.len());
            let Some((called, returned)) = quiet(&history, &history[at].clone()) else { continue };
            let action = Action::Set(Value::MAX);
            history.push(Operation { client: 99, action, called, returned: Some(returned) });
            let verdict = check(None, &history);
            assert!(
                matches!(verdict, Verdict::Violated { .. }),
                "{at} in {history:?}: {verdict:?}"
            );
            found += 1;
            if found == WRONGS {
                return;
            }
        }
        panic!("only {found} updates could be lost");
    }

    #[test]
    fn a_push_that_was_acknowledged_and_lost_is_found() {
        let mut found = 0;
        for (register, mut history) in recorded() {
            let deleted = |one: &Operation| matches!(one.action, Action::Clear | Action::Saw(None));
            let pushed =
                |one: &Operation| matches!(one.action, Action::Set(_)) && one.returned.is_some();
            let of_tag = matches!(register, Register::Tag { .. });
            if of_tag || history.iter().any(deleted) || !history.iter().any(pushed) {
                continue;
            }
            let end = history.iter().map(|one| one.returned.unwrap_or(one.called)).max().unwrap();
            let (action, called) = (Action::Saw(None), end + 1);
            history.push(Operation { client: 99, action, called, returned: Some(called + 1) });
            let verdict = check(None, &history);
            assert!(matches!(verdict, Verdict::Violated { .. }), "{register:?}: {verdict:?}");
            found += 1;
        }
        assert!(found >= WRONGS, "only {found} pushes could be lost");
    }
}
