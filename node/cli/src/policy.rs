//! What a project keeps, and what nobody may change in it.
//!
//! Single rules are added and removed by reading the policy, changing it and writing it back; the
//! node refuses that where somebody else wrote in between.

use std::io::Read as _;
use std::path::Path;

use comfy_table::{Cell, Color};
use reqwest::Method;
use shoal_api::{
    DryRun, Keep, Policy, ProjectPolicy, PutPolicy, RetentionDone, RetentionEntry, RetentionReport,
    RetentionRule, Selection,
};
use shoal_content::ProjectName;

use crate::arguments::{KeepRule, PolicyCommand, Switch};
use crate::client::Client;
use crate::error::Error;
use crate::screen::{Screen, confirm, table};

/// A policy's file; what is longer is none.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

fn path(project: &ProjectName, rest: &str) -> String {
    format!("api/v1/projects/{project}/{rest}")
}

pub async fn policy(command: &PolicyCommand, client: &Client, screen: Screen) -> Result<(), Error> {
    match command {
        PolicyCommand::Show { project, toml } => {
            let shown: ProjectPolicy = client.get(path(project, "policy")).await?;
            let file = if *toml { Some(to_toml(&shown.policy)?) } else { None };
            screen.show(&shown, || file.unwrap_or_else(|| rules(&shown)))
        }
        PolicyCommand::Set { project, file } => {
            let policy = read(file)?;
            put(project, policy, None, client, screen).await
        }
        PolicyCommand::Keep(rule) => {
            let added = kept_by(rule);
            change(&rule.project, client, screen, |policy| {
                policy.retention.push(added);
                Ok(())
            })
            .await
        }
        PolicyCommand::Immutable { project, repositories, tags } => {
            let added = Selection { repositories: repositories.clone(), tags: tags.clone() };
            change(project, client, screen, |policy| {
                policy.immutable.push(added);
                Ok(())
            })
            .await
        }
        PolicyCommand::Untagged { project, after } => {
            change(project, client, screen, |policy| {
                policy.untagged_after_days = after.0;
                Ok(())
            })
            .await
        }
        PolicyCommand::Automatic { project, state } => {
            change(project, client, screen, |policy| {
                policy.automatic = *state == Switch::On;
                Ok(())
            })
            .await
        }
        PolicyCommand::Remove { project, retention, immutable } => {
            change(project, client, screen, |policy| {
                remove(&mut policy.retention, *retention)?;
                remove(&mut policy.immutable, *immutable)
            })
            .await
        }
        PolicyCommand::Clear { project, yes } => clear(project, *yes, client, screen).await,
        PolicyCommand::DryRun { project, file, all } => {
            let policy = file.as_deref().map(read).transpose()?;
            let report = dry_run(project, policy, client).await?;
            screen.show(&report, || report_table(&report, *all))
        }
        PolicyCommand::Run { project, yes } => run(project, *yes, client, screen).await,
    }
}

fn kept_by(rule: &KeepRule) -> RetentionRule {
    let keep = match (rule.newest, rule.pushed_within, rule.pulled_within) {
        (Some(count), _, _) => Keep::Newest(count),
        (_, Some(days), _) => Keep::PushedWithinDays(days.0),
        (_, _, Some(days)) => Keep::PulledWithinDays(days.0),
        (None, None, None) => Keep::Always,
    };
    RetentionRule { repositories: rule.repositories.clone(), tags: rule.tags.clone(), keep }
}

/// Takes away the rule that people call `number`.
fn remove<T>(rules: &mut Vec<T>, number: Option<usize>) -> Result<(), Error> {
    let Some(number) = number else { return Ok(()) };
    if number == 0 || number > rules.len() {
        return Err(Error::NotFound(format!("there is no rule {number}; see 'shoal policy show'")));
    }
    rules.remove(number - 1);
    Ok(())
}

/// From TOML, or from JSON as `--json policy show` prints it.
fn read(file: &Path) -> Result<Policy, Error> {
    let mut text = String::new();
    let failed = Error::file("reading", file);
    let result = if file == Path::new("-") {
        std::io::stdin().lock().take(FILE_BYTES_MAX).read_to_string(&mut text)
    } else {
        std::fs::File::open(file)
            .and_then(|open| open.take(FILE_BYTES_MAX).read_to_string(&mut text))
    };
    result.map_err(failed)?;
    parse(&text).map_err(|reason| Error::Config { path: file.to_owned(), reason })
}

fn parse(text: &str) -> Result<Policy, String> {
    if !text.trim_start().starts_with('{') {
        return toml::from_str(text).map_err(|error| error.to_string());
    }
    let mut value: serde_json::Value =
        serde_json::from_str(text).map_err(|error| error.to_string())?;
    if value.get("policy").is_some() {
        value = value["policy"].take();
    }
    serde_json::from_value(value).map_err(|error| error.to_string())
}

fn to_toml(policy: &Policy) -> Result<String, Error> {
    toml::to_string(policy).map_err(|error| Error::Answer(error.to_string()))
}

/// The policy and its revision; an empty one of revision 0 where there is none.
async fn current(project: &ProjectName, client: &Client) -> Result<(Policy, u64), Error> {
    match client.get::<ProjectPolicy>(path(project, "policy")).await {
        Ok(shown) => Ok((shown.policy, shown.revision)),
        Err(Error::Refused { status: 404, problem }) if problem.code == "policy_not_found" => {
            Ok((Policy::default(), 0))
        }
        Err(error) => Err(error),
    }
}

async fn change(
    project: &ProjectName,
    client: &Client,
    screen: Screen,
    edit: impl FnOnce(&mut Policy) -> Result<(), Error>,
) -> Result<(), Error> {
    let (mut policy, revision) = current(project, client).await?;
    edit(&mut policy)?;
    put(project, policy, Some(revision), client, screen).await
}

async fn put(
    project: &ProjectName,
    policy: Policy,
    revision: Option<u64>,
    client: &Client,
    screen: Screen,
) -> Result<(), Error> {
    let put = PutPolicy { policy, revision };
    let shown: ProjectPolicy = client.call(Method::PUT, path(project, "policy"), &put).await?;
    screen.show(&shown, || rules(&shown))?;
    let drops = !shown.policy.retention.is_empty() || shown.policy.untagged_after_days.is_some();
    if drops && !shown.policy.automatic {
        screen.remark(&format!(
            "Nothing goes by itself. See what would: shoal policy dry-run {project}\n\
             Let it go: shoal policy run {project}, or from now on: shoal policy automatic {project} on"
        ));
    }
    Ok(())
}

fn keep(keep: Keep) -> String {
    match keep {
        Keep::Newest(count) => format!("the newest {count}"),
        Keep::PushedWithinDays(days) => format!("pushed in the last {days} days"),
        Keep::PulledWithinDays(days) => format!("pulled in the last {days} days"),
        Keep::Always => "always".to_owned(),
    }
}

fn rules(shown: &ProjectPolicy) -> String {
    let Policy { automatic, untagged_after_days, retention, immutable } = &shown.policy;
    let mut rows = table(&["RULE", "", "REPOSITORIES", "TAGS", "KEEP"]);
    for (at, rule) in retention.iter().enumerate() {
        let number = (at + 1).to_string();
        let row = ["retention", &number, &rule.repositories, &rule.tags, &keep(rule.keep)];
        rows.add_row(row);
    }
    for (at, of) in immutable.iter().enumerate() {
        let number = (at + 1).to_string();
        rows.add_row(["immutable", &number, &of.repositories, &of.tags, "as it is"]);
    }
    let untagged = match untagged_after_days {
        Some(days) => format!("go after {days} days without use"),
        None => "stay".to_owned(),
    };
    let carried_out = if *automatic { "by itself" } else { "on 'shoal policy run' only" };
    format!(
        "{} is carried out {carried_out}; versions without a tag {untagged}.\n\
         Set by {} at {}.\n\n{rows}",
        shown.project, shown.updated_by, shown.updated_at
    )
}

async fn clear(
    project: &ProjectName,
    yes: bool,
    client: &Client,
    screen: Screen,
) -> Result<(), Error> {
    if !yes && !confirm(&format!("Take all rules of {project} away?"))? {
        return Err(Error::Usage("nothing was changed; --yes does it without asking".into()));
    }
    client.delete(path(project, "policy")).await?;
    screen.show(&serde_json::json!({ "cleared": project }), || format!("{project} has no policy."))
}

async fn dry_run(
    project: &ProjectName,
    policy: Option<Policy>,
    client: &Client,
) -> Result<RetentionReport, Error> {
    client.call(Method::POST, path(project, "retention/dry-run"), &DryRun { policy }).await
}

fn report_table(report: &RetentionReport, all: bool) -> String {
    let shown = |entry: &&RetentionEntry| all || entry.decision == "drop";
    let mut rows = table(&["DECISION", "REPOSITORY", "NAME", "PUSHED", "PULLED", "WHY"]);
    let mut count = 0;
    for entry in report.entries.iter().filter(shown) {
        count += 1;
        let decision = Cell::new(&entry.decision);
        rows.add_row([
            if entry.decision == "drop" { decision.fg(Color::Red) } else { decision },
            Cell::new(&entry.repository),
            Cell::new(entry.name.clone().unwrap_or_else(|| entry.digest.to_string())),
            Cell::new(&entry.pushed_at),
            Cell::new(entry.pulled_at.as_deref().unwrap_or("-")),
            Cell::new(&entry.reason),
        ]);
    }
    let mut text = summary(report);
    if report.truncated {
        text.push_str("\nThere are more than the node lists.");
    }
    for repository in &report.skipped {
        text.push_str(&format!("\n{repository} is left alone: it has too many names."));
    }
    if count == 0 { text } else { format!("{rows}\n\n{text}") }
}

fn summary(report: &RetentionReport) -> String {
    let (names, untagged) = (report.names, report.untagged);
    format!(
        "{} of {} names would go, and {} of {} versions without a tag.",
        names.drop,
        names.drop + names.keep + names.untouched,
        untagged.drop,
        untagged.drop + untagged.keep + untagged.untouched
    )
}

async fn run(
    project: &ProjectName,
    yes: bool,
    client: &Client,
    screen: Screen,
) -> Result<(), Error> {
    if !yes {
        let report = dry_run(project, None, client).await?;
        screen.remark(&summary(&report));
        if !confirm("Go on?")? {
            return Err(Error::Usage("nothing went; --yes does it without asking".into()));
        }
    }
    let nothing = serde_json::json!({});
    let done: RetentionDone =
        client.call(Method::POST, path(project, "retention/run"), &nothing).await?;
    screen.show(&done, || {
        let RetentionDone { repositories, tags, versions, changed, skipped, .. } = &done;
        let mut text =
            format!("Dropped {tags} tags and {versions} versions in {repositories} repositories.");
        if *changed > 0 {
            text.push_str(&format!(" {changed} were pushed, pulled or needed meanwhile."));
        }
        for repository in skipped {
            text.push_str(&format!("\n{repository} was left alone: it has too many names."));
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_read_from_toml_and_json_as_it_is_written() {
        let text = "automatic = true\nuntagged_after_days = 7\n\n[[retention]]\ntags = \"v*\"\n\
                    keep = { newest = 10 }\n\n[[retention]]\nrepositories = \"team/*\"\n\
                    keep = \"always\"\n\n[[immutable]]\ntags = \"release-*\"\n";
        let policy = parse(text).unwrap();
        assert_eq!(policy.retention[0].repositories, "**");
        assert_eq!(policy.retention[0].keep, Keep::Newest(10));
        assert_eq!(parse(&to_toml(&policy).unwrap()).unwrap(), policy);
        let json = serde_json::json!({ "project": "shop", "policy": policy }).to_string();
        assert_eq!(parse(&json).unwrap(), policy);
        assert!(parse("[[retention]]\nkeep = { oldest = 1 }\n").is_err());
        assert!(parse("retain = 1\n").is_err());
    }

    #[test]
    fn rules_are_taken_away_by_the_number_they_are_shown_with() {
        let mut rules = vec!["a", "b", "c"];
        remove(&mut rules, Some(2)).unwrap();
        remove(&mut rules, None).unwrap();
        assert_eq!(rules, ["a", "c"]);
        for number in [0, 3] {
            assert!(remove(&mut rules, Some(number)).is_err());
        }
    }

    #[test]
    fn a_report_shows_what_goes_and_on_demand_the_rest() {
        let entry = |name: &str, decision: &str| RetentionEntry {
            repository: "shop/app".parse().unwrap(),
            kind: "tag".into(),
            name: Some(name.into()),
            digest: shoal_content::Digest::sha256([1; 32]),
            pushed_at: "2026-01-01T00:00:00Z".into(),
            pulled_at: None,
            decision: decision.into(),
            reason: format!("because of {name}"),
            rule: None,
        };
        let report = RetentionReport {
            project: "shop".parse().unwrap(),
            judged_at: String::new(),
            names: shoal_api::Decided { drop: 1, keep: 1, untouched: 0 },
            untagged: shoal_api::Decided::default(),
            entries: vec![entry("v1", "drop"), entry("v2", "keep")],
            truncated: false,
            skipped: vec![],
        };
        let short = report_table(&report, false);
        assert!(short.contains("because of v1") && !short.contains("because of v2"), "{short}");
        assert!(short.contains("1 of 2 names would go"), "{short}");
        assert!(report_table(&report, true).contains("because of v2"));
    }
}
