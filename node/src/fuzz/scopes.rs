//! What is asked for at the token endpoint: scopes, against the rows of a small cluster, and the
//! form that they may come in.

use std::sync::LazyLock;

use shoal_content::{ClusterId, ImageId, Timestamp};
use shoal_metadata::{
    Cluster, Command, ImageKind, ImageProfile, Memory, Query, Secret, Transaction, User, UserRole,
    Who, apply,
};
use uuid::Uuid;

use crate::registry::fuzzed::{SCOPES_MAX, fields_of, grant};

/// The administrator's private repository.
const PRIVATE: &str = "team/app";

/// A cluster with an administrator, somebody else, and a private repository.
static ROWS: LazyLock<Memory> = LazyLock::new(|| {
    let user = |name: &str, role| User {
        name: name.into(),
        password_hash: Secret(b"hash".to_vec()),
        role,
        created_at: Timestamp::from_millis(1),
    };
    let cluster = Cluster {
        id: ClusterId::from_uuid(Uuid::from_u128(1)),
        founded_at: Timestamp::from_millis(1),
        authority_certificate: "certificate".into(),
        authority_key: Secret(vec![1]),
        ticket_key: Secret(vec![2]),
        token_key: Secret(vec![3]),
        network_key: Secret(vec![4; 32]),
    };
    let image = Command::CreateImage {
        id: ImageId::from_uuid(Uuid::from_u128(2)),
        name: PRIVATE.parse().expect("a name"),
        kind: ImageKind::Container,
        profile: ImageProfile::default(),
        owner: "admin".into(),
    };
    let mut rows = Memory::default();
    for command in [
        Command::Found { cluster, admin: user("admin", UserRole::Admin) },
        Command::PutUser(user("eve", UserRole::User)),
        image,
    ] {
        let mut transaction = Transaction::new(&rows);
        let applied = apply(&mut transaction, Timestamp::from_millis(1), command);
        assert!(matches!(applied, Ok(Ok(_))), "{applied:?}");
        let writes = transaction.into_writes();
        rows.commit(writes);
    }
    rows
});

/// One scope to a line, as the parameters of a request. Nobody is granted more than was asked for,
/// nor anything of what is not theirs.
pub fn scopes(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let scopes: Vec<&str> = text.lines().collect();
    let somebody = |name: &str| Who::User { name: name.into(), scopes: None };
    for who in [somebody("admin"), somebody("eve"), Who::Anonymous] {
        let Ok(granted) = grant(Query::new(&*ROWS), &who, &scopes) else { continue };
        assert!(granted.len() <= SCOPES_MAX);
        for one in granted {
            let asked = format!("{}:{}:", one.kind, one.name);
            assert!(text.contains(&asked), "{asked} was not asked for in {text:?}");
            let entitled = one.name != PRIVATE || who == somebody("admin");
            assert!(entitled || one.actions.is_empty(), "{who:?} gets {one:?}");
            assert!(one.actions.len() <= 3, "{one:?}");
        }
    }
}

/// The fields of a form are no longer than it is.
pub fn token_form(data: &[u8]) {
    let fields = fields_of(data);
    let bytes: usize = fields.iter().map(|(name, value)| name.len() + value.len()).sum();
    assert!(bytes <= 3 * data.len(), "{fields:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rows_have_something_to_grant_and_something_to_hide() {
        let granted = |name: &str, scope: &str| {
            let who = Who::User { name: name.into(), scopes: None };
            let all = grant(Query::new(&*ROWS), &who, &[scope]).unwrap();
            all.into_iter().flat_map(|one| one.actions).collect::<Vec<_>>()
        };
        let private = format!("repository:{PRIVATE}:pull,push");
        assert_eq!(granted("admin", &private), ["pull", "push"]);
        assert!(granted("eve", &private).is_empty());
        assert_eq!(granted("eve", "repository:new/app:pull,push"), ["pull", "push"]);
    }
}
