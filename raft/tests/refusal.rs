//! What a member refuses: strangers, commands that another cannot apply, and a full disk.

mod harness;

use std::fs::OpenOptions;
use std::sync::Arc;
use std::time::Duration;

use harness::{
    Authority, DEADLINE, Home, Member, NAME, create_image, eventually, leader, peer, register,
};
use nix::fcntl::{FallocateFlags, fallocate};
use shoal_content::{NodeId, PeerId};
use shoal_metadata::{Command, Node, Refusal};
use shoal_raft::ProposeError;

async fn ask(connection: &quinn::Connection) -> Result<(), String> {
    let (mut send, mut receive) =
        connection.open_bi().await.map_err(|error| format!("{error:?}"))?;
    // Kind 6 asks for the commit index; its body is empty.
    send.write_all(&[6, 0, 0, 0, 0]).await.map_err(|error| format!("{error:?}"))?;
    let mut length = [0; 4];
    receive.read_exact(&mut length).await.map_err(|error| format!("{error:?}"))
}

/// Connects as a stranger would and tries to be answered.
fn approach(member: &Member, client: quinn::ClientConfig) -> Result<(), String> {
    let address = member.address;
    member.run(|_| async move {
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let talk = async {
            let connecting = endpoint.connect_with(client, address, NAME).unwrap();
            let connection = connecting.await.map_err(|error| format!("{error:?}"))?;
            ask(&connection).await
        };
        tokio::time::timeout(Duration::from_secs(10), talk).await.unwrap()
    })
}

#[test]
fn a_stranger_is_refused_in_the_handshake() {
    let authority = Authority::new();
    let mut home = Home::new(1);
    let member = home.start(&authority);
    member.bootstrap();
    // The way in exists for a node of the cluster.
    approach(&member, authority.client(Some(&authority))).unwrap();

    let other = Authority::new();
    let error = approach(&member, authority.client(Some(&other))).unwrap_err();
    assert!(error.to_lowercase().contains("certificate"), "{error}");
    let error = approach(&member, authority.client(None)).unwrap_err();
    assert!(error.to_lowercase().contains("certificate"), "{error}");
    eventually("both are counted", || {
        (member.metric("shoal_raft_strangers_refused_total") == 2.0).then_some(())
    });
    // Nor does a member talk to a stranger that poses as a node.
    let error = approach(&member, other.client(Some(&authority))).unwrap_err();
    assert!(!error.is_empty());
}

#[test]
fn a_connection_ends_when_who_is_at_its_other_end_is_believed_no_longer() {
    let authority = Authority::new();
    let mut home = Home::new(1);
    let member = home.start(&authority);
    member.bootstrap();
    let mut client = authority.client(Some(&authority));
    let mut settings = shoal_raft::quic_settings();
    settings.keep_alive_interval(Some(Duration::from_secs(1)));
    client.transport_config(Arc::new(settings));
    let address = member.address;
    let (_endpoint, connection) = member.run(move |_| async move {
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let connection = endpoint.connect_with(client, address, NAME).unwrap().await.unwrap();
        ask(&connection).await.unwrap();
        (endpoint, connection)
    });
    authority.refuse(&[peer(1)]);
    let closed = member.run(move |_| async move {
        tokio::time::timeout(DEADLINE, connection.closed()).await.unwrap()
    });
    assert!(format!("{closed:?}").contains("no node of this cluster any more"), "{closed:?}");
    approach(&member, authority.client(Some(&authority))).unwrap_err();
    authority.refuse(&[]);
    approach(&member, authority.client(Some(&authority))).unwrap();
}

#[test]
fn a_removed_node_is_refused_from_then_on() {
    let authority = Authority::new();
    let mut home = Home::new(1);
    let member = home.start(&authority);
    member.bootstrap();
    // Whoever approaches is this peer.
    let row = |id: u64| match register(id, 2) {
        Command::RegisterNode(node) => {
            Command::RegisterNode(Node { peer: PeerId::from_public_key([1; 32]), ..node })
        }
        other => other,
    };
    let known = || authority.client(Some(&authority));
    member.propose(register(7, 2)).unwrap();
    member.propose(row(5)).unwrap();
    approach(&member, known()).unwrap();
    member.propose(Command::RemoveNode(NodeId::new(5))).unwrap();
    let error = approach(&member, known()).unwrap_err();
    assert!(error.contains("removed from this cluster"), "{error}");
    // With a new token and a new id it is a node again.
    member.propose(row(6)).unwrap();
    approach(&member, known()).unwrap();
}

#[test]
fn a_command_that_the_oldest_member_cannot_apply_is_not_proposed() {
    let authority = Authority::new();
    let mut home = Home::new(1);
    let member = home.start(&authority);
    member.bootstrap();
    member.propose(register(1, 2)).unwrap();
    member.propose(register(2, 1)).unwrap();
    let raise = || member.propose(Command::RaiseLevel { to: 2 });
    let unsupported = ProposeError::Unsupported { needs: 2, oldest: 1 };
    assert_eq!(raise(), Err(unsupported));
    member.propose(register(2, 2)).unwrap();
    raise().unwrap();
    let refused = member.propose(register(3, 1));
    let too_old = Refusal::TooOld { node: NodeId::new(3), knows: 1 };
    assert_eq!(refused, Err(ProposeError::Refused(too_old)));
    assert_eq!(member.read().query().level().unwrap(), 2);
}

#[test]
fn a_full_disk_refuses_proposals_and_service_resumes_with_space() {
    const MIB: u64 = 1024 * 1024;
    let authority = Authority::new();
    let mut home = Home::new(1);
    let disk = nix::sys::statvfs::statvfs(home.path()).unwrap();
    let free = disk.blocks_available() * disk.fragment_size();
    // Others use this disk, too: the reserve begins a good way below what is free.
    let (margin, ballast) = (768 * MIB, 1536 * MIB);
    assert!(free > 4096 * MIB, "this test needs 4 GiB of disk");
    let member = home.start_with(&authority, |config| config.disk_reserve_bytes = free - margin);
    member.bootstrap();
    member.propose(create_image(1)).unwrap();

    let path = home.path().join("ballast");
    let file = OpenOptions::new().create_new(true).write(true).open(&path).unwrap();
    fallocate(&file, FallocateFlags::empty(), 0, ballast as i64).unwrap();
    // What was seen of the disk may be a moment old.
    let mut numbers = 2..;
    let refused = eventually("the disk is seen to be full", || {
        member.propose(create_image(numbers.next()?)).err()
    });
    assert_eq!(refused, ProposeError::Storage("disk full".into()));
    assert!(refused.is_retryable());
    // Reading goes on.
    assert!(harness::has_image(&member.read(), 1));

    drop(file);
    std::fs::remove_file(&path).unwrap();
    eventually("proposals are taken again", || member.propose(create_image(numbers.next()?)).ok());
    assert_eq!(member.metric("shoal_raft_core_restarts_total"), 0.0);
}

#[test]
fn a_leader_without_room_lets_another_one_lead() {
    let authority = Authority::new();
    let (mut home, mut other) = (Home::new(1), Home::new(2));
    let disk = nix::sys::statvfs::statvfs(home.path()).unwrap();
    let free = disk.blocks_available() * disk.fragment_size();
    // Less than the reserve is free, and more than half of it: it can follow, and not lead.
    let full = home.start_with(&authority, |config| config.disk_reserve_bytes = free / 2 * 3);
    let roomy = other.start(&authority);
    let address = full.address.to_string();
    full.run(|raft| async move { raft.bootstrap(address).await }).unwrap();
    // Alone it leads all the same.
    assert_eq!(full.propose(create_image(1)), Err(ProposeError::Storage("disk full".into())));
    full.add(&roomy);
    let members = [full, roomy];
    eventually("the other one leads", || (leader(&members) == 1).then_some(()));
    members[1].propose(harness::put_admin()).unwrap();
    members[0].propose(create_image(2)).unwrap();
}
