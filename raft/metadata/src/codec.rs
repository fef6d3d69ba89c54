//! How rows and commands become bytes.
//!
//! Layout: one version byte, then postcard. Rows carry [`ROW_VERSION`]; a command carries the
//! version in which its variant, or the newest field it uses, appeared, so that a node can see
//! from the first byte whether it can apply it. Enum variants and struct fields are only added at
//! the end, under a new version. Golden tests hold the bytes.
//!
//! Versions and a rolling upgrade: a command is proposed only once the cluster's level has reached
//! its version. The same must hold for rows: what a later program writes in a row's newer form, it
//! writes only from the level on that the form came with, since snapshots go from any member to any
//! other.
//!
//! Non-goal: checksums; RocksDB and QUIC have their own.

use postcard::ser_flavors::Flavor;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::command::{COMMAND_VERSION, Command};

/// The version that rows are written in.
pub const ROW_VERSION: u8 = 1;

/// Why bytes are no row or command.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CodecError {
    #[error("there are no bytes")]
    Empty,
    #[error("the version is {0}, newer than this program knows")]
    Version(u8),
    #[error("the bytes are malformed: {0}")]
    Malformed(postcard::Error),
}

/// The version a program must know to apply `command`.
pub fn command_version(command: &Command) -> u8 {
    match command {
        Command::Audited { command, .. } => command_version(command).max(2),
        Command::RaiseLevel { .. }
        | Command::DescribeNode { .. }
        | Command::PutAcmeAccount(_)
        | Command::PutAcmeChallenges { .. }
        | Command::PutHttpCertificate(_)
        | Command::HealBlob { .. }
        | Command::CreateUser(_)
        | Command::CreateOrganization { .. }
        | Command::RemoveOrganization { .. }
        | Command::CreateGroup(_)
        | Command::RemoveGroup { .. }
        | Command::CreateProject(_)
        | Command::UpdateProject { .. }
        | Command::RemoveProject { .. }
        | Command::PutRight { .. }
        | Command::RemoveRight { .. }
        | Command::PutRobot(_)
        | Command::RemoveRobot(_)
        | Command::CreatePersonalToken(_)
        | Command::RemovePersonalToken { .. }
        | Command::NoteTokenUses { .. }
        | Command::SetPolicy { .. }
        | Command::RemovePolicy { .. }
        | Command::Retire(_)
        | Command::NotePulls { .. }
        | Command::SetQuota { .. }
        | Command::RemoveQuota { .. }
        | Command::ReserveUpload { .. }
        | Command::CountUsage
        | Command::NoteFailures { .. }
        | Command::Unblock { .. }
        | Command::NoteAudit(_)
        | Command::ArchiveAudit(_)
        | Command::CreateDescribedImage { .. }
        | Command::DescribeImage { .. }
        | Command::TrashImage { .. }
        | Command::RestoreImage { .. }
        | Command::BeginDescribedUpload { .. }
        | Command::PublishDisk { .. }
        | Command::DescribeVersion { .. }
        | Command::DeprecateVersion { .. }
        | Command::Rollback { .. }
        | Command::RegisterInstance { .. }
        | Command::RemoveInstance { .. }
        | Command::NoteStars { .. }
        | Command::NoteDownloads(_)
        | Command::ClaimImport { .. }
        | Command::BeginSecondFactor { .. }
        | Command::ConfirmSecondFactor { .. }
        | Command::UseSecondFactor { .. }
        | Command::PutRecoveryCodes { .. }
        | Command::RemoveSecondFactor { .. }
        | Command::BeginSession { .. }
        | Command::EndSession { .. }
        | Command::EndSessions { .. }
        | Command::ChangePassword { .. }
        | Command::LinkIdentity { .. }
        | Command::UnlinkIdentity { .. }
        | Command::PutWorkloadRule(_)
        | Command::RemoveWorkloadRule { .. }
        | Command::LeaveLater { .. }
        | Command::Stay { .. }
        | Command::IndexBlobs
        | Command::BeginBlobUpload { .. }
        | Command::OrderDeployment(_)
        | Command::PauseDeployment { .. }
        | Command::RetryDeployment { .. }
        | Command::ExtendDeployment { .. }
        | Command::ReportAttempt { .. }
        | Command::PassDeadlines { .. }
        | Command::CreateWarmUp(_)
        | Command::RemoveWarmUp { .. }
        | Command::RunWarmUp { .. }
        | Command::ClaimDelta { .. }
        | Command::EndDelta { .. }
        | Command::NoteDeltaUses { .. }
        | Command::DropDeltas { .. }
        | Command::CacheManifest(_)
        | Command::RotateSigningKey { .. }
        | Command::AddPasskey { .. }
        | Command::UsePasskey { .. }
        | Command::UpdatePasskey { .. }
        | Command::RemovePasskeys { .. }
        | Command::MakeDataKey { .. }
        | Command::WrapDataKeys { .. }
        | Command::HandOverObjects { .. }
        | Command::DestroyDataKeys { .. }
        | Command::SealSecrets { .. }
        | Command::RecoverAdministrator { .. }
        | Command::StepAuthority(_)
        | Command::NoteMasterKeys { .. }
        | Command::ExpelAgent { .. }
        | Command::RedescribeImage { .. }
        | Command::PurgeImage { .. }
        | Command::ReportHosts { .. }
        | Command::FollowGroup { .. }
        | Command::SetEmail { .. }
        | Command::OrderScan { .. }
        | Command::ClaimScan { .. }
        | Command::EndScan { .. }
        | Command::MoveChunks(_)
        | Command::SettleImages { .. }
        | Command::IndexLists
        | Command::NoteRegistration { .. }
        | Command::RehashPassword { .. } => 2,
        // A variant or field that appears after a release gets an arm above, under a version that
        // the release does not know.
        _ => 1,
    }
}

/// `command` as it stands in the log.
pub fn encode_command(command: &Command) -> Vec<u8> {
    encode(command_version(command), command)
}

/// # Errors
/// [`CodecError::Version`] for a command newer than [`COMMAND_VERSION`].
pub fn decode_command(bytes: &[u8]) -> Result<Command, CodecError> {
    decode_command_up_to(COMMAND_VERSION, bytes)
}

/// As a program would that knows commands up to `newest`.
///
/// # Errors
/// [`CodecError::Version`] for a command newer than that.
pub fn decode_command_up_to(newest: u8, bytes: &[u8]) -> Result<Command, CodecError> {
    decode(newest, bytes)
}

/// `row` as it is stored.
pub fn encode_row<T: Serialize>(row: &T) -> Vec<u8> {
    encode(ROW_VERSION, row)
}

/// # Errors
/// [`CodecError`] where the bytes are no row of that kind.
pub fn decode_row<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    decode(ROW_VERSION, bytes)
}

fn encode<T: Serialize>(version: u8, value: &T) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(USUAL_BYTES);
    bytes.push(version);
    // Serialising into a growing vector fails only for types that postcard has no form for, of
    // which there is none among ours: the golden tests encode every one.
    serialize(bytes, value).expect("our types have a postcard form")
}

/// Most values fit into so many bytes, and so into one allocation.
const USUAL_BYTES: usize = 256;

/// `value` in postcard's form, without a version.
///
/// # Errors
/// For types that postcard has no form for.
pub fn encode_bare<T: Serialize>(value: &T) -> Result<Vec<u8>, postcard::Error> {
    serialize(Vec::with_capacity(USUAL_BYTES), value)
}

fn serialize<T: Serialize>(bytes: Vec<u8>, value: &T) -> Result<Vec<u8>, postcard::Error> {
    postcard::serialize_with_flavor(value, Behind(bytes))
}

/// Puts bytes behind those that are there; postcard's own starts with a vector without room.
struct Behind(Vec<u8>);

impl Flavor for Behind {
    type Output = Vec<u8>;

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<Vec<u8>> {
        Ok(self.0)
    }
}

fn decode<T: DeserializeOwned>(newest: u8, bytes: &[u8]) -> Result<T, CodecError> {
    let (&version, rest) = bytes.split_first().ok_or(CodecError::Empty)?;
    if version == 0 || version > newest {
        return Err(CodecError::Version(version));
    }
    let (value, rest) = postcard::take_from_bytes(rest).map_err(CodecError::Malformed)?;
    if rest.is_empty() {
        Ok(value)
    } else {
        Err(CodecError::Malformed(postcard::Error::SerdeDeCustom))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_is_newer_torn_or_too_long() {
        let bytes = encode_command(&Command::RemoveUser { name: "u".into() });
        assert!(decode_command(&bytes).is_ok());
        let mut newer = bytes.clone();
        newer[0] = COMMAND_VERSION + 1;
        assert_eq!(decode_command(&newer), Err(CodecError::Version(COMMAND_VERSION + 1)));
        assert!(decode_command(&bytes[..bytes.len() - 1]).is_err());
        assert!(decode_command(&[&bytes[..], &[0]].concat()).is_err());
        assert_eq!(decode_command(&[]), Err(CodecError::Empty));
    }
}
