//! The projects of upstreams: made where they are missing, and people's from then on.

use std::time::Duration;

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
    loop {
        for upstream in app.upstreams.all() {
            if let Err(problem) = make(&app, upstream).await {
                warn!(upstream = %upstream.name, error = problem.message,
                    "the project of an upstream cannot be made yet");
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn make(app: &App, upstream: &Upstream) -> Result<(), Problem> {
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
    match app.propose(Command::CreateProject(project)).await {
        Ok(_) => info!(project = %upstream.name, "the project of an upstream was made"),
        // Another node was quicker.
        Err(ProposeError::Refused(Refusal::Exists(_))) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    if settings.keep_days == 0 {
        return Ok(());
    }
    let days = settings.keep_days;
    let everything = Selection { repositories: Pattern::everything(), tags: Pattern::everything() };
    let keep = Keep::PulledWithin { days };
    let rules = PolicyRules {
        automatic: true,
        retention: vec![RetentionRule { selection: everything, keep }],
        untagged_days: Some(days),
        immutable: Vec::new(),
    };
    let (project, by) = (upstream.name.clone(), upstream.owner());
    app.propose(Command::SetPolicy { project, rules, expected: Some(0), by }).await?;
    Ok(())
}
