//! The state machine of the metadata: rows, commands, and how one changes the other.
//!
//! Rows live in tables of bytes behind [`Read`]; two of those exist, [`Memory`] (tests and
//! simulation) and the RocksDB view of `shoal-raft`. [`apply`] works on a [`Transaction`], an
//! overlay over a `Read`, and whoever called it writes the overlay down. Questions are asked
//! through [`Query`], over any `Read`.
//!
//! Invariants: nothing here has a clock, randomness, I/O of its own, or an iteration order that
//! depends on hashing. The same rows and the same command give the same rows, answer and events on
//! every replica. A refused command changes nothing.
//! Non-goals: who somebody is (the node's authentication), OCI JSON and DTOs, replication.

mod apply;
mod audit;
mod authority;
mod catalog;
mod codec;
mod command;
mod delta;
mod deployment;
mod encryption;
mod key;
mod keys;
mod lockout;
mod login;
mod memory;
mod passkey;
mod query;
mod quota;
mod record;
mod relocation;
mod restore;
mod retention;
mod rights;
mod scan;
mod secrets;
mod table;
mod transaction;

pub use apply::{COUNTED_MAX, EXPELLED_MAX, Outcome, PULLS_MAX, RETIRED_MAX, apply};
pub use audit::{
    AUDIT_BATCH_MAX, AuditArchive, AuditBatch, AuditEntry, AuditFilter, AuditFlaw, AuditHash,
    AuditNote, AuditPage, AuditPhase, AuditResult, AuditSource, audited, chained, folded, verify,
};
pub use authority::{
    AUTHORITIES_RETIRED_MAX, AUTHORITY_ANNOUNCED_MS, AUTHORITY_BYTES_MAX, AUTHORITY_OVERLAP_MS,
    AuthorityNext, AuthorityState, AuthorityStep, ClusterAuthority, NodeAuthority,
    signing_authority,
};
pub use catalog::*;
pub use codec::{
    CodecError, ROW_VERSION, command_version, decode_command, decode_command_up_to, decode_row,
    encode_bare, encode_command, encode_row,
};
pub use command::*;
pub use delta::{
    DELTAS_AT_ONCE_MAX, DELTAS_PER_IMAGE_MAX, Delta, DeltaBundle, DeltaKey, DeltaState,
};
pub use deployment::{
    DeploymentOrder, DeploymentPlan, HostReport, REPORTS_MAX, WARM_UPS_MAX, WarmUp,
};
pub use encryption::{
    DATA_KEY_BYTES_MAX, DATA_KEYS_PER_OWNER_MAX, DataKey, DataKeyState, HandedKey, KEY_BATCH_MAX,
    KeyOwner, MASTER_KEY_ID_BYTES_MAX, MASTER_KEYS_MAX,
};
pub use keys::{
    KeyPurpose, SIGNATURES_LIVE_MS, SIGNING_KEY_BYTES_MAX, SIGNING_KEYS_MAX, SigningKey,
    accepted_until,
};
pub use lockout::{
    BLOCKS_MAX, Block, BlockReason, FAILURES_MAX, Failure, LockoutRules, SUSPICIONS_MAX, Suspect,
    SuspectError, TIMES_MAX,
};
pub use login::{
    EMAIL_BYTES_MAX, IDENTITIES_MAX, IDENTITY_BYTES_MAX, Identity, Leaving, LoginMeans, Proof,
    RECOVERY_CODES_MAX, SESSION_AGENT_BYTES_MAX, SecondFactor, Session, is_email,
};
pub use memory::Memory;
pub use passkey::{
    Answered, CHALLENGE_KEPT_MS, CREDENTIAL_BYTES_MAX, PASSKEY_BYTES_MAX, PASSKEY_NAME_BYTES_MAX,
    PASSKEY_USES_MAX, PASSKEY_WINDOW_MS, PASSKEYS_MAX, Passkey, PasskeyOwner,
};
pub use query::Query;
pub use quota::{
    Account, Drift, Exceeded, Payer, PayerError, PayerKind, Quota, QuotaKind, QuotaLimits, QuotaOf,
    drift,
};
pub use record::*;
pub use relocation::{
    MOVED_OBJECTS_MAX, MOVED_REFERENCES_MAX, MOVED_VERSIONS_MAX, MovedChunks, Moving, Relocation,
    SETTLED_IMAGES_MAX,
};
pub use restore::{Carried, carry};
pub use retention::*;
pub use rights::*;
pub use scan::{
    OPEN_SCANS_MAX, SCAN_REASON_BYTES_MAX, SCANNER_BYTES_MAX, Scan, ScanKey, ScanOutcome,
    ScanReport, ScanState, SeverityCounts,
};
pub use secrets::{SEALED_AT_ONCE_MAX, SEALED_BYTES_MAX, SealedSecret, SecretPlace};
pub use table::{Fault, Read, Rows, Table};
pub use transaction::{Transaction, Writes};
