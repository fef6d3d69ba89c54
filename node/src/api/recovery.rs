//! The way back for an administrator who has lost password, second factor or passkeys, where no other
//! one is there to help: asked for on a node's machine (see `unblocking`).

use axum::Json;
use axum::extract::State;
use shoal_api::{AccountRecovered, Hidden};
use shoal_content::AccountName;
use shoal_metadata::{Command, UserRole};
use tracing::warn;

use super::caller::MemberNode;
use super::input::Path;
use super::problem::{conflict, missing};
use crate::founding::made_up_password;
use crate::http::problem::Problem;
use crate::state::App;

/// What it counts is as of a moment before.
pub async fn recover(
    State(app): State<App>,
    _node: MemberNode,
    Path(user): Path<String>,
) -> Result<Json<AccountRecovered>, Problem> {
    let password = made_up_password();
    let recovered = {
        let view = app.view().await?;
        let query = view.query();
        let row = query.user(&user)?;
        let row = row.ok_or_else(|| missing("user_not_found", "there is no such user"))?;
        if row.role != UserRole::Admin {
            let text = "this is no administrator; one who can log in gives others a new password";
            return Err(conflict("not_administrator", text));
        }
        let tokens = match user.parse::<AccountName>() {
            Ok(name) => query.personal_tokens(&name)?.len(),
            Err(_) => 0,
        };
        AccountRecovered {
            username: user.clone(),
            password: Hidden(password.to_string()),
            second_factor_removed: query.second_factor(&user)?.is_some(),
            passkeys_removed: query.passkeys(&user)?.len() as u64,
            sessions_ended: query.sessions(&user)?.len() as u64,
            tokens_kept: tokens as u64,
        }
    };
    let password_hash = app.accounts.hash(None, password).await?;
    app.propose(Command::RecoverAdministrator { user: user.clone(), password_hash }).await?;
    warn!(user, "an administrator was given another password on a node's machine");
    Ok(Json(recovered))
}
