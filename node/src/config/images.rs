//! What is kept of deleted images, and where files may be imported from.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Images {
    /// How long a deleted image can be restored; 0 is until the next look.
    pub deleted_keep_days: u32,
}

impl Default for Images {
    fn default() -> Self {
        Self { deleted_keep_days: 30 }
    }
}

/// Where nodes get files from by themselves, on users' orders.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Import {
    /// `images.example`, `*.images.example`, or `*` for any; none switches imports off.
    pub allowed_hosts: Vec<String>,
    /// Networks that are not public and may be asked all the same.
    pub allowed_networks: Vec<IpNet>,
    /// The longest file.
    pub max_bytes: u64,
}

impl Default for Import {
    fn default() -> Self {
        const TIB: u64 = 1024 * 1024 * 1024 * 1024;
        Self { allowed_hosts: Vec::new(), allowed_networks: Vec::new(), max_bytes: TIB }
    }
}

impl Import {
    /// What is wrong with it: the key, and why.
    pub(super) fn mistake(&self) -> Option<(&'static str, &'static str)> {
        let odd = |host: &String| {
            let name = host.strip_prefix("*.").unwrap_or(host);
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-:".contains(&byte);
            host != "*" && (name.is_empty() || !name.bytes().all(plain))
        };
        let text =
            "names and addresses without ports or paths: images.example, *.images.example, *";
        self.allowed_hosts.iter().any(odd).then_some(("allowed_hosts", text))
    }
}
