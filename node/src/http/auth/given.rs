//! What a request's `Authorization` header says, before anybody is looked up.
//!
//! Invariant: nothing of a header longer than [`CREDENTIALS_BYTES_MAX`] is looked at.
//! Non-goal: whether it is true; see `auth` and `auth::token`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use zeroize::Zeroizing;

/// Longer credentials are refused unread, in bytes.
pub const CREDENTIALS_BYTES_MAX: usize = 8 * 1024;

/// Credentials, as they were brought.
pub enum Given<'a> {
    /// RFC 7617: a name has no colon, a password may have some.
    Basic { name: Zeroizing<String>, password: Zeroizing<String> },
    /// RFC 6750.
    Bearer(&'a str),
}

impl<'a> Given<'a> {
    /// Whether they name nobody: podman, skopeo and buildah send an empty name and password to
    /// whoever asks for Basic, where they have no login.
    pub fn is_nobody(&self) -> bool {
        matches!(self, Self::Basic { name, password } if name.is_empty() && password.is_empty())
    }

    /// `None` is what nobody can be let in with, whatever it is.
    pub fn parse(header: &'a str) -> Option<Self> {
        if header.len() > CREDENTIALS_BYTES_MAX {
            return None;
        }
        let (scheme, rest) = header.split_once(' ')?;
        let rest = rest.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            return Some(Self::Bearer(rest));
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let decoded = Zeroizing::new(BASE64.decode(rest).ok()?);
        let (name, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
        let own = |text: &str| Zeroizing::new(text.to_owned());
        Some(Self::Basic { name: own(name), password: own(password) })
    }
}
