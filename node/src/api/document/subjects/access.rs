//! Logging in, and what belongs to whoever is logged in.

use shoal_api::{LoginPending, LoginResponse};

use super::super::note::{Subject, delete, get, patch, post, put};

pub fn login() -> Subject {
    Subject {
        name: "Login",
        about: "A login by password, by passkey or at another issuer gives a token; send it as `Authorization: \
                Bearer TOKEN`.",
        notes: vec![
            post("/api/v1/auth/login", "Logs in with a name and a password")
                .gives_json::<LoginResponse>(200, "A session has begun.")
                .gives_json::<LoginPending>(
                    202,
                    "The password is right; a code or a passkey is to come.",
                )
                .refuses(401, "unauthorized second_factor_needed")
                .refuses(403, "locked"),
            post("/api/v1/auth/login/code", "Ends a login that needs a second factor")
                .refuses(401, "ticket_invalid code_wrong")
                .refuses(403, "locked")
                .refuses(404, "not_found"),
            post("/api/v1/auth/register", "Makes an account for whoever asks")
                .about(
                    "Where `accounts.registration` is `open`. An address that asks for too many, whether \
                     it gets them or not, is blocked.",
                )
                .status(201)
                .refuses(400, "password_invalid email_invalid")
                .refuses(403, "locked")
                .refuses(404, "registration_closed")
                .refuses(409, "user_exists"),
            post("/api/v1/auth/passkey", "Asks for a passkey")
                .about(
                    "Give `options` to `navigator.credentials.get`. Without a name or a ticket any \
                     passkey may answer; with the ticket of a login by password, it is the second step.",
                )
                .refuses(400, "name_invalid")
                .refuses(401, "ticket_invalid")
                .refuses(404, "passkeys_off"),
            post("/api/v1/auth/passkey/answer", "Ends a login by a passkey's answer")
                .refuses(400, "credential_invalid")
                .refuses(
                    401,
                    "challenge_over passkey_wrong passkey_page passkey_unverified passkey_counter \
                     ticket_invalid",
                )
                .refuses(403, "locked")
                .refuses(404, "passkeys_off"),
            get("/api/v1/auth/oidc/login", "Sends a browser to the other issuer")
                .about("A program on the same machine as the browser gives `port` and `challenge`.")
                .gives(302, "", "To the issuer; a cookie remembers the login.")
                .refuses(403, "locked")
                .refuses(404, "oidc_off")
                .refuses(502, "issuer_away"),
            get("/api/v1/auth/oidc/callback", "Hears what the other issuer says")
                .gives_json::<LoginResponse>(200, "A session has begun.")
                .gives(302, "", "To the program that began the login, with a ticket.")
                .refuses(401, "oidc_failed identity_unknown")
                .refuses(403, "locked")
                .refuses(404, "oidc_off")
                .refuses(409, "account_taken")
                .refuses(502, "issuer_away"),
            post("/api/v1/auth/oidc/redeem", "Gives a program's ticket for a session")
                .refuses(401, "oidc_failed")
                .refuses(403, "locked"),
            post("/api/v1/auth/workload", "Gives a job's token of another issuer for a robot's")
                .refuses(401, "workload_refused")
                .refuses(403, "locked"),
            post("/api/v1/auth/refresh", "Gives the session that asks a new token"),
            post("/api/v1/auth/logout", "Ends the session that asks"),
            get("/api/v1/auth/me", "Says who asks"),
        ],
    }
}

pub fn own() -> Subject {
    Subject {
        name: "Own account",
        about: "What belongs to the person who asks. A token without the scope `admin` may not \
                change it.",
        notes: vec![
            put("/api/v1/user/password", "Changes the own password")
                .about("Ends the other sessions.")
                .refuses(400, "password_invalid")
                .refuses(409, "password_elsewhere"),
            put("/api/v1/user/email", "Says where the asker gets mail")
                .about("An empty text is nowhere.")
                .refuses(400, "email_invalid")
                .refuses(404, "not_found"),
            get("/api/v1/user/tokens", "Lists the own tokens"),
            post("/api/v1/user/tokens", "Makes a token; its text is shown this once")
                .about("For who is logged in, or gives the password: a token makes none.")
                .status(201)
                .refuses(400, "name_invalid scope_invalid ttl_invalid")
                .refuses(409, "exists"),
            delete("/api/v1/user/tokens/{token}", "Takes a token away").refuses(404, "not_found"),
            get("/api/v1/user/sessions", "Lists the own sessions"),
            delete("/api/v1/user/sessions", "Ends all own sessions but the one that asks"),
            delete("/api/v1/user/sessions/{session}", "Ends an own session")
                .refuses(404, "session_not_found"),
            get("/api/v1/user/second-factor", "Says whether a second factor is asked for"),
            post("/api/v1/user/second-factor", "Begins a second factor")
                .about("It counts from the first code on that `confirm` is given.")
                .status(201)
                .refuses(409, "second_factor_exists"),
            delete("/api/v1/user/second-factor", "Removes the second factor")
                .refuses(401, "code_wrong")
                .refuses(404, "not_found"),
            post("/api/v1/user/second-factor/confirm", "Confirms a second factor by a first code")
                .refuses(400, "code_wrong")
                .refuses(404, "second_factor_not_found")
                .refuses(409, "second_factor_exists"),
            post("/api/v1/user/second-factor/recovery-codes", "Makes new recovery codes")
                .refuses(401, "code_wrong")
                .refuses(404, "not_found"),
            get("/api/v1/user/passkeys", "Lists the own passkeys"),
            post("/api/v1/user/passkeys", "Begins a passkey")
                .about(
                    "Give `options` to `navigator.credentials.create`. Each passkey is a login of its \
                     own, without the password.",
                )
                .refuses(404, "passkeys_off"),
            post("/api/v1/user/passkeys/answer", "Registers the passkey that was made")
                .about("With `second_factor`, the password alone does not let in any more.")
                .status(201)
                .refuses(
                    400,
                    "challenge_over credential_invalid name_invalid passkey_wrong passkey_page \
                     passkey_unverified",
                )
                .refuses(404, "passkeys_off")
                .refuses(409, "passkey_exists"),
            patch("/api/v1/user/passkeys/{passkey}", "Renames a passkey, or what it is for")
                .refuses(400, "name_invalid")
                .refuses(404, "passkey_not_found")
                .refuses(409, "passkey_exists"),
            delete("/api/v1/user/passkeys/{passkey}", "Removes a passkey")
                .refuses(404, "passkey_not_found"),
            get("/api/v1/user/stars", "Lists the images that the asker has starred"),
            get("/api/v1/user/export", "Gives all that is kept about the asker"),
            get("/api/v1/user/deletion", "Says whether and when the account is to be removed"),
            post("/api/v1/user/deletion", "Asks for the own account to be removed")
                .about("It is, after a while in which that can be taken back.")
                .status(202)
                .refuses(409, "last_admin last_owner"),
            delete("/api/v1/user/deletion", "Takes that back").refuses(404, "deletion_not_found"),
        ],
    }
}
