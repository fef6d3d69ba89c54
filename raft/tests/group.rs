//! A group of real members: replication, forwarding, reads, elections, snapshots, membership.

mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use harness::{
    Authority, DEADLINE, Home, create_image, eventually, has_image, image_id, image_name, leader,
    register, three,
};
use shoal_content::{Digest, NodeId, Timestamp};
use shoal_metadata::{
    Command, Event, ImageKind, MANIFEST_BYTES_MAX, PutManifest, Refusal, Response, Subject,
};
use shoal_raft::{Error, ProposeError, ReadError};

#[test]
fn every_member_takes_proposals_and_reads_what_any_other_wrote() {
    let authority = Authority::new();
    let (_homes, members) = three(&authority);
    for round in 0..10 {
        for (at, writer) in members.iter().enumerate() {
            let number = round * 3 + at as u64;
            assert_eq!(writer.propose(create_image(number)), Ok(Response::Image(image_id(number))));
            for reader in &members {
                assert!(has_image(&reader.read(), number), "image {number} at {}", reader.id);
            }
        }
    }
    let again = members[1].propose(create_image(0));
    assert_eq!(again, Err(ProposeError::Refused(Refusal::Exists(Subject::Image))));
    assert_eq!(members[2].read().query().image_count().unwrap(), 30);
}

#[test]
fn hundreds_of_proposals_at_once_through_a_follower_get_an_answer_each() {
    const CLIENTS: u64 = 600;
    let authority = Authority::new();
    let (_homes, members) = three(&authority);
    let follower = (leader(&members) + 1) % members.len();
    // Every image twice: one of the two is refused, and which one is not known.
    let answers = members[follower].run(|raft| async move {
        let all = (0..CLIENTS).map(|client| {
            let raft = raft.clone();
            async move {
                let command = create_image(client / 2);
                (client / 2, raft.propose(Timestamp::from_millis(1), command).await)
            }
        });
        futures::future::join_all(all).await
    });
    let mut created = vec![0; CLIENTS as usize / 2];
    for (number, answer) in answers {
        match answer {
            Ok(response) => {
                assert_eq!(response, Response::Image(image_id(number)));
                created[number as usize] += 1;
            }
            Err(error) => {
                assert_eq!(error, ProposeError::Refused(Refusal::Exists(Subject::Image)));
            }
        }
    }
    assert!(created.iter().all(|times| *times == 1), "{created:?}");
    assert_eq!(members[follower].read().query().image_count().unwrap(), CLIENTS / 2);
}

#[test]
fn the_longest_manifest_gets_through_from_any_member_and_a_longer_one_is_refused() {
    let authority = Authority::new();
    let (_homes, members) = three(&authority);
    let put = |number: u64, bytes: usize| {
        Command::PutManifest(PutManifest {
            repository: image_name(0),
            image: image_id(1),
            version: format!("ver-{number:032x}").parse().unwrap(),
            kind: ImageKind::Container,
            digest: Digest::sha256([number as u8; 32]),
            media_type: "m".into(),
            manifest: vec![b' '; bytes],
            artifact_type: None,
            annotations: Default::default(),
            subject: None,
            references: Default::default(),
            disk: None,
            tags: vec![],
            owner: "admin".into(),
            upload: None,
        })
    };
    for (number, member) in (1..).zip(&members) {
        member.propose(put(number, MANIFEST_BYTES_MAX)).unwrap();
    }
    for member in &members {
        let view = member.read();
        for number in 1..=3u8 {
            let digest = Digest::sha256([number; 32]);
            let manifest = view.query().manifest(image_id(1), &digest).unwrap().unwrap();
            assert_eq!(manifest.len(), MANIFEST_BYTES_MAX);
        }
    }
    let refused = members[1].propose(put(9, MANIFEST_BYTES_MAX + 1));
    assert_eq!(refused, Err(ProposeError::Refused(Refusal::ManifestTooLong)));
    let refused = members[1].propose(put(9, 16 * MANIFEST_BYTES_MAX));
    assert!(matches!(refused, Err(ProposeError::Refused(Refusal::Limit(_)))), "{refused:?}");
}

#[test]
fn concurrent_reads_share_rounds() {
    let authority = Authority::new();
    let (_homes, members) = three(&authority);
    let follower = &members[(leader(&members) + 1) % 3];
    let (reads, rounds) = (
        follower.metric("shoal_raft_reads_total"),
        follower.metric("shoal_raft_read_rounds_total"),
    );
    follower.run(|raft| async move {
        let reads = (0..500).map(|_| raft.read());
        for view in futures::future::join_all(reads).await {
            view.unwrap();
        }
    });
    assert_eq!(follower.metric("shoal_raft_reads_total") - reads, 500.0);
    assert!(follower.metric("shoal_raft_read_rounds_total") - rounds < 100.0);
}

#[test]
fn a_killed_leader_is_replaced_and_nothing_acknowledged_is_lost() {
    let authority = Authority::new();
    let (mut homes, mut members) = three(&authority);
    let first = leader(&members);
    let stop = Arc::new(AtomicBool::new(false));
    // A client of a follower writes all the while, across the leader's death.
    let writer = members[(first + 1) % 3].raft.clone();
    let stopped = stop.clone();
    let (report, progress) = std::sync::mpsc::channel();
    members[(first + 1) % 3].run(|_| async move {
        tokio::spawn(async move {
            for number in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let at = Timestamp::from_millis(number);
                let written = writer.propose(at, create_image(number)).await;
                report.send((number, Instant::now(), written)).unwrap();
            }
        });
    });
    let before = progress.recv_timeout(DEADLINE).unwrap();
    assert!(before.2.is_ok());
    let killed_home = first;
    let killed = members.remove(first);
    killed.kill();
    let died = Instant::now();

    let mut acknowledged = vec![before.0];
    loop {
        let (number, at, written) = progress.recv_timeout(DEADLINE).unwrap();
        written.unwrap_or_else(|error| panic!("image {number}: {error}"));
        acknowledged.push(number);
        if at > died + Duration::from_secs(1) {
            break;
        }
    }
    // An election takes 2 s at most, a second one now and then, and longer on a busy machine.
    assert!(died.elapsed() < DEADLINE, "took {:?}", died.elapsed());
    stop.store(true, Ordering::Relaxed);
    while let Ok((number, _, written)) = progress.recv_timeout(DEADLINE) {
        written.unwrap();
        acknowledged.push(number);
    }
    assert_ne!(leader(&members), 3);
    for member in &members {
        let view = member.read();
        for number in &acknowledged {
            assert!(has_image(&view, *number), "image {number} is lost at {}", member.id);
        }
        assert_eq!(view.query().image_count().unwrap(), acknowledged.len() as u64);
    }

    let back = homes[killed_home].start(&authority);
    let last = *acknowledged.last().unwrap();
    eventually("the killed member catches up", || {
        has_image(&back.raft.local(), last).then_some(())
    });
    assert_eq!(back.read().query().image_count().unwrap(), acknowledged.len() as u64);
}

#[test]
fn a_leader_without_its_majority_answers_no_read_once_its_lease_is_over() {
    let authority = Authority::new();
    let (_homes, mut members) = three(&authority);
    let alone = members.swap_remove(leader(&members));
    assert_eq!(alone.read().query().image_count().unwrap(), 0);
    members.into_iter().for_each(harness::Member::kill);
    eventually("reads are not answered", || {
        let read = async |raft: shoal_raft::Raft| {
            tokio::time::timeout(Duration::from_millis(500), raft.read()).await.is_ok()
        };
        (!alone.run(async move |raft| read(raft).await)).then_some(())
    });
}

#[test]
fn a_leader_hands_over_while_clients_write_and_no_write_fails() {
    let authority = Authority::new();
    let (_homes, members) = three(&authority);
    let first = leader(&members);
    let stop = Arc::new(AtomicBool::new(false));
    let (report, progress) = std::sync::mpsc::channel();
    for (at, member) in members.iter().enumerate() {
        let (raft, stopped, report) = (member.raft.clone(), stop.clone(), report.clone());
        let reader = members[first].raft.clone();
        member.run(|_| async move {
            tokio::spawn(async move {
                for round in 0.. {
                    if stopped.load(Ordering::Relaxed) {
                        break;
                    }
                    let number = round * 3 + at as u64;
                    let time = Timestamp::from_millis(round);
                    let written = raft.propose(time, create_image(number)).await;
                    // Who led until now must not answer from what it knew then.
                    let is_seen = reader.read().await.map(|view| has_image(&view, number));
                    report.send((number, written, is_seen)).unwrap();
                }
            });
        });
    }
    drop(report);
    let check = |(number, written, is_seen): (u64, Result<_, _>, Result<bool, _>)| {
        let _: Response =
            written.unwrap_or_else(|error: ProposeError| panic!("image {number}: {error}"));
        let is_seen = is_seen.unwrap_or_else(|error: ReadError| panic!("image {number}: {error}"));
        assert!(is_seen, "image {number} is not seen where it was answered for");
    };
    check(progress.recv_timeout(DEADLINE).unwrap());
    let taken = members[first].run(|raft| async move { raft.hand_over().await });
    let taken = taken.unwrap().unwrap();
    assert_ne!(taken, members[first].id);
    assert_eq!(members[first].raft.status().leader, Some(taken));
    // Who does not lead has nothing to hand over.
    let again = members[first].run(|raft| async move { raft.hand_over().await });
    assert!(matches!(again, Ok(None)), "{again:?}");
    // Some more with the new leader.
    for _ in 0..20 {
        check(progress.recv_timeout(DEADLINE).unwrap());
    }
    stop.store(true, Ordering::Relaxed);
    while let Ok(report) = progress.recv_timeout(DEADLINE) {
        check(report);
    }
}

#[test]
fn a_leader_alone_has_nobody_to_hand_over_to_and_goes_on() {
    let authority = Authority::new();
    let mut home = Home::new(1);
    let member = home.start(&authority);
    member.bootstrap();
    member.propose(create_image(1)).unwrap();
    let handed = member.run(|raft| async move { raft.hand_over().await });
    assert!(matches!(handed, Ok(None)), "{handed:?}");
    member.propose(create_image(2)).unwrap();
}

#[test]
fn a_group_that_was_stopped_starts_again_with_its_data() {
    let authority = Authority::new();
    let mut home = Home::new(1);
    let member = home.start(&authority);
    assert!(!member.raft.is_initialized());
    member.bootstrap();
    for number in 0..20 {
        member.propose(create_image(number)).unwrap();
    }
    member.stop();

    let member = home.start(&authority);
    assert!(member.raft.is_initialized());
    assert_eq!(member.read().query().image_count().unwrap(), 20);
    let address = member.address.to_string();
    let again = member.run(|raft| async move { raft.bootstrap(address).await });
    assert!(matches!(again, Err(Error::NotEmpty)), "{again:?}");
    member.propose(create_image(20)).unwrap();
    // And once more, without a good-bye.
    member.kill();
    let member = home.start(&authority);
    assert_eq!(member.read().query().image_count().unwrap(), 21);
}

#[test]
fn a_new_member_gets_a_snapshot_where_the_log_is_gone() {
    let authority = Authority::new();
    let short = |config: &mut shoal_raft::Config| {
        config.snapshot_after = 20;
        config.keep_entries = 0;
    };
    let mut homes = [Home::new(1), Home::new(2)];
    let first = homes[0].start_with(&authority, short);
    first.bootstrap();
    for number in 0..300 {
        first.propose(create_image(number)).unwrap();
    }
    // One is taken every 20 entries, of what is applied by then.
    eventually("a snapshot of nearly all is taken", || {
        let status = first.raft.status();
        (status.snapshot? + 24 >= status.last_applied?).then_some(())
    });

    let second = homes[1].start_with(&authority, short);
    // Opened before: it shows what it showed whatever is installed.
    let empty = second.raft.local();
    let mut events = second.raft.events();
    first.add(&second);
    assert_eq!(events.try_recv(), Ok(Event::AllChanged), "who watches rows is told to look again");
    assert!(second.metric("shoal_raft_snapshots_installed_total") >= 1.0);
    assert_eq!(second.read().query().image_count().unwrap(), 300);
    assert_eq!(empty.query().image_count().unwrap(), 0);
    drop(empty);
    second.propose(create_image(300)).unwrap();

    // What was installed lasts, and only one state is left.
    second.stop();
    let second = homes[1].start_with(&authority, short);
    assert_eq!(second.read().query().image_count().unwrap(), 301);
    let states = std::fs::read_dir(homes[1].path().join("raft")).unwrap().flatten();
    let states = states.filter(|entry| entry.file_name().to_string_lossy().starts_with("state-"));
    assert_eq!(states.count(), 1);
}

#[test]
fn members_come_and_go_even_the_leader() {
    let authority = Authority::new();
    let (_homes, mut members) = three(&authority);
    let all = [1, 2, 3].map(NodeId::new);
    assert!(members[0].raft.status().voters.iter().eq(&all));
    // What is done already is no error.
    members[1].add(&members[2]);

    let leads = leader(&members);
    let leading = members[leads].id;
    let other = (leads + 1) % 3;
    members[other].remove(leading);
    let gone = members.remove(leads);
    eventually("the others go on without it", || {
        let leader = members[0].raft.status().leader?;
        (leader != leading).then_some(())
    });
    members[0].propose(create_image(1)).unwrap();
    assert!(has_image(&members[1].read(), 1));
    assert!(!members[0].raft.status().voters.contains(&leading));
    members[0].remove(leading);
    drop(gone);
}

#[test]
fn who_was_removed_from_the_cluster_is_no_member_again() {
    let authority = Authority::new();
    let mut homes = [Home::new(1), Home::new(2)];
    let first = homes[0].start(&authority);
    first.bootstrap();
    let second = homes[1].start(&authority);
    for id in [1, 2] {
        first.propose(register(id, 1)).unwrap();
    }
    first.propose(Command::RemoveNode(second.id)).unwrap();
    let (id, address) = (second.id, second.address.to_string());
    let added = first.run(move |raft| async move { raft.add_member(id, address).await });
    let refused = added.unwrap_err().to_string();
    assert!(refused.contains("was removed from this cluster"), "{refused}");
    assert!(!first.raft.status().voters.contains(&id));
}
