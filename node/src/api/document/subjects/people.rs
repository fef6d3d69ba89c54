//! Accounts, and the organizations and groups that they are in.

use super::super::note::{Subject, delete, get, patch, post, put};

pub fn organizations() -> Subject {
    let none = "organization_not_found not_found";
    Subject {
        name: "Organizations",
        about: "Organizations own projects; their groups get rights together.",
        notes: vec![
            get("/api/v1/organizations", "Lists the organizations that the asker may see")
                .about("By name, at most 1000 in one answer; a Link leads on."),
            post("/api/v1/organizations", "Makes an organization")
                .status(201)
                .refuses(400, "owner_invalid")
                .refuses(404, "not_found")
                .refuses(409, "exists"),
            get("/api/v1/organizations/{organization}", "Shows an organization")
                .refuses(404, "organization_not_found"),
            delete("/api/v1/organizations/{organization}", "Removes an organization")
                .refuses(404, "not_found")
                .refuses(409, "in_use"),
            get("/api/v1/organizations/{organization}/members", "Lists an organization's members")
                .about("By who has it, at most 1000 in one answer; a Link leads on.")
                .refuses(404, "organization_not_found"),
            put("/api/v1/organizations/{organization}/members/{user}", "Makes somebody a member")
                .refuses(400, "grantee_invalid role_invalid wrong_right")
                .refuses(404, none)
                .refuses(409, "last_owner"),
            delete(
                "/api/v1/organizations/{organization}/members/{user}",
                "Takes a membership back",
            )
            .refuses(404, none)
            .refuses(409, "last_owner"),
            get("/api/v1/organizations/{organization}/groups", "Lists an organization's groups")
                .about(
                    "By name, each with all members; at most 1000 in one answer, a Link leads on.",
                )
                .refuses(404, "organization_not_found"),
            post("/api/v1/organizations/{organization}/groups", "Makes a group")
                .status(201)
                .refuses(404, none)
                .refuses(409, "exists"),
            delete("/api/v1/organizations/{organization}/groups/{group}", "Removes a group")
                .refuses(404, none),
            put(
                "/api/v1/organizations/{organization}/groups/{group}/members/{user}",
                "Puts somebody into a group",
            )
            .refuses(400, "wrong_right")
            .refuses(404, none),
            delete(
                "/api/v1/organizations/{organization}/groups/{group}/members/{user}",
                "Takes somebody out of a group",
            )
            .refuses(404, none),
        ],
    }
}

pub fn users() -> Subject {
    Subject {
        name: "Users",
        about: "People's accounts, for administrators; auditors may look.",
        notes: vec![
            get("/api/v1/users", "Lists the accounts")
                .about("By name, at most 1000 in one answer; a Link leads on."),
            post("/api/v1/users", "Makes an account")
                .about("Without a password one is made up, and shown this once.")
                .status(201)
                .refuses(400, "role_invalid password_invalid password_hash_invalid email_invalid")
                .refuses(409, "user_exists"),
            get("/api/v1/users/{user}", "Shows an account").refuses(404, "user_not_found"),
            patch("/api/v1/users/{user}", "Changes an account")
                .refuses(400, "role_invalid password_invalid email_invalid")
                .refuses(404, "user_not_found not_found")
                .refuses(409, "last_admin"),
            delete("/api/v1/users/{user}", "Removes an account")
                .refuses(404, "not_found")
                .refuses(409, "last_admin last_owner in_use"),
            get("/api/v1/users/{user}/sessions", "Lists somebody's sessions")
                .refuses(404, "user_not_found"),
            delete("/api/v1/users/{user}/sessions", "Ends all of somebody's sessions")
                .refuses(404, "not_found"),
            get("/api/v1/users/{user}/identities", "Lists who somebody is at other issuers")
                .refuses(404, "user_not_found"),
            post("/api/v1/users/{user}/identities", "Links somebody of another issuer's")
                .refuses(404, "user_not_found not_found")
                .refuses(409, "identity_taken"),
            delete("/api/v1/users/{user}/identities", "Takes such a link back")
                .refuses(404, "user_not_found identity_not_found not_found"),
            delete("/api/v1/users/{user}/second-factor", "Removes a second factor that was lost")
                .refuses(404, "second_factor_not_found"),
            get("/api/v1/users/{user}/passkeys", "Lists somebody's passkeys")
                .refuses(404, "user_not_found"),
            delete("/api/v1/users/{user}/passkeys", "Removes all passkeys of who has lost them")
                .refuses(404, "passkey_not_found"),
            post("/api/v1/users/{user}/recovery", "Lets an administrator in again who has lost all")
                .about(
                    "For `shoal-node recover-admin` on a node's machine. The account gets a password \
                     that is made up, and shown this once; its second factor, its passkeys, its sessions \
                     and a lock of it end.",
                )
                .refuses(404, "user_not_found not_found")
                .refuses(409, "not_administrator"),
        ],
    }
}
