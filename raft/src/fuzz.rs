//! What members say to each other, as functions of bytes, for whoever throws bytes at them
//! (`shoal_node::fuzz`): the kind and body of a request, or an answer.
//!
//! Non-goal: what is done with a message that could be read.

use std::fmt::Debug;

use openraft::entry::RaftEntry;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    VoteRequest, VoteResponse,
};
use openraft::vote::RaftLeaderId;
use openraft::{EntryPayload, RaftTypeConfig};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shoal_content::{Digest, Timestamp};
use shoal_metadata::{Command, Response, decode_command, encode_command};

use crate::proposal::{Entry, LogId, Proposal, SnapshotMeta, TypeConfig, Vote};
use crate::store::{decode, encode};
use crate::transfer::{Installed, Offer, OfferedFile, check_names};
use crate::wire::{AddMember, Failure, Kind, Proposed};

/// The kind that stands for an answer to a request: no request has it.
const ANSWER: u8 = 0;

type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;
type AppendRequest = AppendEntriesRequest<TypeConfig>;

/// What can be read is the same when it was written and read again. Postcard has several forms of
/// one number, so bytes are compared from the second form on.
fn same<T: DeserializeOwned + Serialize>(body: &[u8]) -> Option<T> {
    let value: T = decode(body).ok()?;
    let written = encode(&value).expect("what was read can be written");
    let again: T = decode(&written).expect("what was written can be read");
    assert_eq!(encode(&again).ok(), Some(written));
    Some(value)
}

fn look_at(proposal: &Proposal) {
    // What it carries is decoded once it is applied, and refused there.
    if let Ok(command) = decode_command(&proposal.command) {
        assert_eq!(decode_command(&encode_command(&command)).as_ref(), Ok(&command));
    }
    assert!(format!("{proposal:?}").len() < 200, "a proposal is shown without what is in it");
}

/// The first byte is the kind of a request, or none of an answer; the rest its body.
pub fn message(data: &[u8]) {
    let Some((kind, body)) = data.split_first() else { return };
    let Some(kind) = Kind::from_byte(*kind) else {
        if *kind == ANSWER {
            answer(body);
        }
        return;
    };
    match kind {
        Kind::Append => {
            let Some(request) = same::<AppendRequest>(body) else { return };
            for entry in &request.entries {
                if let EntryPayload::Normal(proposal) = &entry.payload {
                    look_at(proposal);
                }
            }
        }
        Kind::Vote | Kind::PreVote => drop(same::<VoteRequest<TypeConfig>>(body)),
        Kind::SnapshotFiles => {
            let Some(offer) = same::<Offer>(body) else { return };
            if check_names(&offer).is_ok() {
                let leaves = |file: &OfferedFile| file.name.contains(['/', '\0']);
                assert!(!offer.files.iter().any(leaves), "{offer:?}");
            }
        }
        Kind::Propose => {
            if let Some(proposal) = same(body) {
                look_at(&proposal);
            }
        }
        Kind::ProposeMany => {
            for proposal in same::<Vec<Proposal>>(body).iter().flatten() {
                look_at(proposal);
            }
        }
        Kind::ReadIndex => drop(same::<()>(body)),
        Kind::AddMember => drop(same::<AddMember>(body)),
        Kind::RemoveMember => drop(same::<u64>(body)),
        Kind::TransferLeader => drop(same::<TransferLeaderRequest<TypeConfig>>(body)),
    }
}

/// What a leader or a follower answers may come from a node that lies, too.
fn answer(body: &[u8]) {
    fn round<T: DeserializeOwned + Serialize + PartialEq + Debug>(body: &[u8]) {
        if let Some(value) = same::<T>(body) {
            let written = encode(&value).expect("what was read can be written");
            assert_eq!(decode::<T>(&written).ok(), Some(value));
        }
    }
    round::<Proposed>(body);
    round::<Vec<Proposed>>(body);
    round::<Result<u64, Failure>>(body);
    round::<Result<(), Failure>>(body);
    round::<Result<Vec<bool>, Failure>>(body);
    drop(same::<Installed>(body));
    drop(same::<Result<AppendEntriesResponse<TypeConfig>, Failure>>(body));
    drop(same::<Result<VoteResponse<TypeConfig>, Failure>>(body));
}

/// Good messages of each kind.
///
/// # Panics
/// Where one cannot be written, which is a bug here.
pub fn messages() -> Vec<Vec<u8>> {
    fn message<T: Serialize>(kind: u8, body: &T) -> Vec<u8> {
        [&[kind], encode(body).expect("it can be written").as_slice()].concat()
    }
    let at = Timestamp::from_millis(7);
    let repository = "team/app".parse().expect("a name");
    let command = Command::UnlinkBlob { repository, digest: Digest::sha256([7; 32]) };
    let proposal = Proposal { id: 9, at, command: encode_command(&command).into() };
    let id = |index| LogId::new(LeaderId::new(3, 1).to_committed(), index);
    let entries = vec![
        <TypeConfig as RaftTypeConfig>::Entry::new(id(5), EntryPayload::Blank),
        Entry::new(id(6), EntryPayload::Normal(proposal.clone())),
    ];
    let vote = Vote::new(3, 1);
    let append =
        AppendRequest { vote, prev_log_id: Some(id(4)), entries, leader_commit: Some(id(4)) };
    let file = OfferedFile { name: "000012.sst".into(), length: 9, blake3: [7; 32] };
    let offer = Offer { vote, meta: SnapshotMeta::default(), files: vec![file] };
    let proposed: Proposed = Ok(Ok(Response::Done));
    let failed: Proposed = Err(Failure::NotLeader { leader: Some("10.0.0.1:5001".into()) });
    let installed: Installed = Ok(SnapshotResponse { vote });
    vec![
        message(Kind::Append as u8, &append),
        message(Kind::Vote as u8, &VoteRequest::<TypeConfig>::new(vote, Some(id(4)))),
        message(Kind::SnapshotFiles as u8, &offer),
        message(Kind::Propose as u8, &proposal),
        message(Kind::ProposeMany as u8, &vec![proposal.clone(), proposal]),
        message(Kind::ReadIndex as u8, &()),
        message(Kind::AddMember as u8, &AddMember { id: 4, address: "10.0.0.4:5001".into() }),
        message(Kind::RemoveMember as u8, &4_u64),
        message(ANSWER, &proposed),
        message(ANSWER, &vec![proposed, failed]),
        message(ANSWER, &installed),
    ]
}
