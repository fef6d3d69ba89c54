//! The projects of upstreams: made where they are missing, and people's from then on.

use std::collections::BTreeSet;
use std::time::Duration;

use shoal_content::ProjectName;
use shoal_metadata::{
    Command, Keep, Owner, Pattern, PolicyRules, Project, Refusal, RetentionRule, Selection,
    UserRole, command_version,
};
use shoal_raft::ProposeError;
use tracing::{info, warn};

use super::Upstream;
use crate::http::problem::Problem;
use crate::state::App;

/// How often it is looked whether one is missing.
const INTERVAL: Duration = Duration::from_secs(2);

/// Makes the projects that are missing, until it is dropped.
pub async fn keep_projects(app: App) {
    let mut bare = BTreeSet::new();
    loop {
        for upstream in app.upstreams.all() {
            if let Err(problem) = keep(&app, upstream, &mut bare).await {
                warn!(upstream = %upstream.name, error = problem.message,
                    "the project of an upstream cannot be made yet");
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// `bare` are those that this node has made, or may have, and that have no policy by it yet.
async fn keep(
    app: &App,
    upstream: &Upstream,
    bare: &mut BTreeSet<ProjectName>,
) -> Result<(), Problem> {
    make(app, upstream, bare).await?;
    if bare.contains(&upstream.name) {
        set_policy(app, upstream).await?;
        bare.remove(&upstream.name);
    }
    Ok(())
}

async fn make(
    app: &App,
    upstream: &Upstream,
    bare: &mut BTreeSet<ProjectName>,
) -> Result<(), Problem> {
    let view = app.raft.local();
    let query = view.query();
    let level = query.level()?;
    if query.project(&upstream.name)?.is_some() || level < command_version(&Command::CountUsage) {
        return Ok(());
    }
    let admin = query.users()?.into_iter().find(|user| user.role == UserRole::Admin);
    drop(view);
    let (now, settings) = (app.now(), &upstream.settings);
    let visibility = settings.parsed_visibility().unwrap_or(shoal_metadata::Visibility::Private);
    let project = Project {
        name: upstream.name.clone(),
        owner: Owner::User(admin.map(|admin| admin.name).unwrap_or_default()),
        visibility,
        description: format!("Images of {}, pulled through", settings.url),
        created_at: now,
        updated_at: now,
    };
    // Noted before: a command whose answer is lost may have been applied.
    let is_first = bare.insert(upstream.name.clone());
    match app.propose(Command::CreateProject(project)).await {
        Ok(_) => info!(project = %upstream.name, "the project of an upstream was made"),
        Err(ProposeError::Refused(refusal)) => {
            if is_first {
                bare.remove(&upstream.name);
            }
            // Another node was quicker, or this one at its last try.
            if !matches!(refusal, Refusal::Exists(_)) {
                return Err(ProposeError::Refused(refusal).into());
            }
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Sets the policy of a project that has none.
async fn set_policy(app: &App, upstream: &Upstream) -> Result<(), Problem> {
    let days = upstream.settings.keep_days;
    if days == 0 {
        return Ok(());
    }
    let everything = Selection { repositories: Pattern::everything(), tags: Pattern::everything() };
    let keep = Keep::PulledWithin { days };
    let rules = PolicyRules {
        automatic: true,
        retention: vec![RetentionRule { selection: everything, keep }],
        untagged_days: Some(days),
        immutable: Vec::new(),
    };
    let (project, by) = (upstream.name.clone(), upstream.owner());
    match app.propose(Command::SetPolicy { project, rules, expected: Some(0), by }).await {
        // People have set one already, or removed the project again.
        Ok(_) | Err(ProposeError::Refused(Refusal::PolicyChanged | Refusal::NotFound(_))) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
