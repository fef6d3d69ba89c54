//! Deployments with a plan: who begins when, what a pause, a retry and a deadline do, and the
//! policies that order by themselves.

mod world;

use std::collections::BTreeSet;

use shoal_content::{PeerId, Priority};
use shoal_metadata::*;
use world::*;

const DONE: HostState =
    HostState::Done { bytes_from_peers: 1, bytes_from_nodes: 2, bytes_local: 3 };

/// Agents 1 to `agents`, and `vm:latest` with manifest 20.
fn with_agents(agents: u8) -> World {
    let mut world = World::founded();
    world.accepts(Command::CreateJoinToken(token("t", JoinRole::Agent, None)));
    for number in 1..=agents {
        world.accepts(Command::EnrolAgent {
            token: "t".into(),
            secret_hash: [7; 32],
            agent: agent(number),
        });
    }
    world.accepts(create_image(1, "vm", ImageKind::Disk));
    world.accepts(publish_disk("vm", 1, 20, "1.0"));
    world
}

fn peers(numbers: &[u8]) -> BTreeSet<PeerId> {
    numbers.iter().copied().map(peer).collect()
}

fn order(number: u64, hosts: &[u8], plan: DeploymentPlan) -> Command {
    Command::OrderDeployment(DeploymentOrder {
        id: deployment_id(number),
        image: name("vm"),
        digest: digest(20),
        tag: None,
        hosts: peers(hosts),
        owner: "admin".into(),
        plan,
    })
}

fn report(host: u8, attempt: u32, state: HostState) -> Command {
    Command::ReportAttempt { deployment: deployment_id(1), peer: peer(host), attempt, state }
}

fn failed() -> HostState {
    HostState::Failed { reason: "no space".into() }
}

fn state(world: &World, host: u8) -> HostState {
    world.query().deployment(deployment_id(1)).unwrap().unwrap().hosts[&peer(host)].clone()
}

fn plan(world: &World) -> DeploymentPlan {
    world.query().deployment_plan(deployment_id(1)).unwrap().unwrap_or_default()
}

/// Brings a deployment to the most hosts that one may have, with such as are no agents.
fn fill(world: &mut World, state: &HostState) {
    let mut row = world.query().deployment(deployment_id(1)).unwrap().unwrap();
    for number in (0..10_000u32).rev() {
        if row.hosts.len() == 10_000 {
            break;
        }
        let mut public = [255; 32];
        public[..4].copy_from_slice(&number.to_be_bytes());
        row.hosts.insert(PeerId::from_public_key(public), state.clone());
    }
    let id = row.id.as_uuid().as_bytes().to_vec();
    let writes = Writes::from([((Table::Deployments, id), Some(encode_row(&row)))]);
    world.rows.commit(writes);
}

/// Whom an order stream would tell, which has to be whoever is at work.
fn told(world: &World, agents: u8) -> Vec<u8> {
    let is_told = |host: &u8| {
        let pending = world.query().pending_deployments(peer(*host)).unwrap();
        let told = pending.iter().any(|one| one.id == deployment_id(1));
        assert_eq!(told, state(world, *host).is_at_work(), "host {host}");
        let attempt = world.query().pending_attempt(peer(*host), deployment_id(1)).unwrap();
        assert_eq!(attempt, told.then(|| plan(world).attempt(peer(*host))), "host {host}");
        told
    };
    (1..=agents).filter(is_told).collect()
}

fn parallel(most: u32) -> DeploymentPlan {
    DeploymentPlan { parallel: Some(most), ..DeploymentPlan::default() }
}

#[test]
fn what_many_hosts_say_at_once_counts_as_if_each_had_said_it_alone() {
    let says = |host: u8, attempt, state| (peer(host), HostReport { attempt, state });
    let together = |said: &[(PeerId, HostReport)]| Command::ReportHosts {
        reports: [(deployment_id(1), said.iter().cloned().collect())].into(),
    };
    for plan in [parallel(2), DeploymentPlan::default()] {
        let (mut alone, mut world) = (with_agents(6), with_agents(6));
        for world in [&mut alone, &mut world] {
            world.accepts(order(1, &[1, 2, 3, 4, 5], plan.clone()));
        }
        // An end, a beginning, one of an attempt that is none, and of one that has no part in it.
        let first = told(&world, 5)[0];
        let second = told(&world, 5)[1];
        let said = [
            says(first, 0, DONE),
            says(second, 0, HostState::Running),
            says((first % 5) + 1, 3, failed()),
            says(6, 0, failed()),
        ];
        let said: Vec<_> = said.into_iter().rev().collect();
        let outcome = world.propose(together(&said)).unwrap();
        assert_eq!(outcome.events.len(), 1, "{outcome:?}");
        for (peer, HostReport { attempt, state }) in &said {
            let deployment = deployment_id(1);
            let (peer, attempt, state) = (*peer, *attempt, state.clone());
            let has_plan = world.query().deployment_plan(deployment).unwrap().is_some();
            let _ = alone.propose(match has_plan {
                true => Command::ReportAttempt { deployment, peer, attempt, state },
                false => Command::ReportHost { deployment, peer, state },
            });
        }
        let row = |world: &World| world.query().deployment(deployment_id(1)).unwrap().unwrap();
        let expected = row(&alone).hosts;
        assert_eq!(row(&world).hosts, expected);
        assert_eq!(told(&world, 5), told(&alone, 5));
        // Said again, it changes nothing.
        assert!(world.propose(together(&said)).unwrap().events.is_empty());
    }
    let mut world = with_agents(1);
    let unknown = together(&[says(1, 0, DONE)]);
    assert!(world.propose(unknown).unwrap().events.is_empty());
    let many = (0..=REPORTS_MAX as u32).map(|number| {
        let mut public = [0; 32];
        public[..4].copy_from_slice(&number.to_be_bytes());
        (PeerId::from_public_key(public), HostReport { attempt: 0, state: DONE })
    });
    let many = together(&many.collect::<Vec<_>>());
    assert!(matches!(world.refuses(many), Refusal::Limit(_)));
}

#[test]
fn never_more_hosts_are_at_work_than_may_be_and_the_next_begins_when_one_ends() {
    let mut world = with_agents(5);
    assert!(matches!(world.refuses(order(1, &[1], parallel(0))), Refusal::DeploymentState(_)));
    world.accepts(order(1, &[1, 2, 3, 4, 5], parallel(2)));
    let first: BTreeSet<u8> = told(&world, 5).into_iter().collect();
    assert_eq!(first.len(), 2);
    // One that was not told cannot begin by saying so.
    let untold = (1..=5).find(|host| !first.contains(host)).unwrap();
    world.accepts(report(untold, 0, HostState::Running));
    world.accepts(Command::ReportHost {
        deployment: deployment_id(1),
        peer: peer(untold),
        state: HostState::Running,
    });
    assert_eq!(told(&world, 5).len(), 2);
    let mut ended = 0;
    while let Some(&next) = told(&world, 5).first() {
        assert!(told(&world, 5).len() <= 2);
        world.accepts(report(next, 0, HostState::Running));
        let end = if ended % 2 == 0 { failed() } else { DONE };
        world.accepts(report(next, 0, end));
        ended += 1;
    }
    assert_eq!(ended, 5);
    // An agent that goes away makes room, too.
    world.accepts(Command::RetryDeployment { id: deployment_id(1), deadline: None });
    let at_work = told(&world, 5);
    assert_eq!(at_work.len(), 2);
    world.accepts(Command::RemoveAgent(peer(at_work[0])));
    assert!(matches!(state(&world, at_work[0]), HostState::Failed { .. }));
    assert_eq!(told(&world, 5).len(), 2);
}

#[test]
fn each_order_begins_at_a_host_of_its_own() {
    let mut world = with_agents(4);
    world.accepts(order(3, &[1, 2, 3, 4], parallel(1)));
    let at_work = |world: &World| {
        let row = world.query().deployment(deployment_id(3)).unwrap().unwrap();
        row.hosts.into_iter().find(|(_, state)| state.is_at_work()).map(|(host, _)| host)
    };
    for host in [3, 4, 1, 2].map(peer) {
        assert_eq!(at_work(&world), Some(host));
        let deployment = deployment_id(3);
        world.accepts(Command::ReportAttempt { deployment, peer: host, attempt: 0, state: DONE });
    }
    assert_eq!(at_work(&world), None);
}

#[test]
fn a_pause_stops_all_and_what_was_said_before_it_counts_no_more() {
    let mut world = with_agents(3);
    world.accepts(order(1, &[1, 2, 3], parallel(2)));
    let before = told(&world, 3);
    world.accepts(report(before[0], 0, HostState::Running));
    let pause = |paused| Command::PauseDeployment { id: deployment_id(1), paused };
    world.accepts(pause(true));
    assert_eq!(told(&world, 3), [] as [u8; 0]);
    assert_eq!(plan(&world).attempt(peer(before[0])), 1);
    world.accepts(report(before[0], 0, failed()));
    assert_eq!(state(&world, before[0]), HostState::Queued);
    world.accepts(pause(true));
    assert_eq!(plan(&world).attempt(peer(before[0])), 1);
    // It was through at that very moment.
    world.accepts(report(before[1], 0, DONE));
    world.accepts(pause(false));
    assert_eq!(told(&world, 3).len(), 2);
    for host in told(&world, 3) {
        let attempt = plan(&world).attempt(peer(host));
        world.accepts(report(host, attempt, DONE));
    }
    assert!(matches!(world.refuses(pause(true)), Refusal::DeploymentState(_)));
}

#[test]
fn who_was_removed_while_it_was_in_line_takes_nobodys_place() {
    let removed = HostState::Failed { reason: "the agent was removed".into() };
    let mut world = with_agents(4);
    world.accepts(order(1, &[1, 2, 3, 4], parallel(1)));
    let first = told(&world, 4)[0];
    let others: Vec<u8> = (1..=4).filter(|host| *host != first).collect();
    for host in &others[..2] {
        world.accepts(Command::RemoveAgent(peer(*host)));
    }
    world.accepts(report(first, 0, DONE));
    assert_eq!(told(&world, 4), [others[2]]);
    world.accepts(report(others[2], 0, DONE));
    assert!(others[..2].iter().all(|host| state(&world, *host) == removed));

    // While it was held up, too.
    let mut world = with_agents(2);
    world.accepts(order(1, &[1, 2], parallel(1)));
    let pause = |paused| Command::PauseDeployment { id: deployment_id(1), paused };
    world.accepts(pause(true));
    for host in [1, 2] {
        world.accepts(Command::RemoveAgent(peer(host)));
    }
    world.accepts(pause(false));
    assert!([1, 2].iter().all(|host| state(&world, *host) == removed));
    assert!(matches!(world.refuses(pause(true)), Refusal::DeploymentState(_)), "it is over");
}

#[test]
fn the_last_thousand_orders_stay_and_before_them_what_goes_on_or_a_policy_goes_by() {
    let mut world = with_agents(1);
    let late = DeploymentPlan { deadline: Some(at(1_000_000)), ..DeploymentPlan::default() };
    world.accepts(order(1, &[1], late));
    world.accepts(report(1, 0, DONE));
    // Nobody has ended this one.
    world.accepts(order(2, &[1], DeploymentPlan::default()));
    world.accepts(Command::CreateWarmUp(warm_up("base", "vm")));
    world.accepts(Command::RunWarmUp {
        name: account("base"),
        expected: None,
        id: deployment_id(3),
        digest: digest(20),
        hosts: peers(&[1]),
    });
    world.accepts(order(4, &[1], DeploymentPlan::default()));
    for number in [3, 4] {
        world.accepts(Command::CancelDeployment { id: deployment_id(number) });
    }
    let over = world.query().deployment(deployment_id(4)).unwrap().unwrap();
    let mut writes = Writes::new();
    for number in 1_000..2_000u64 {
        let (id, created_at) = (deployment_id(number), at(number));
        let row = encode_row(&Deployment { id, created_at, ..over.clone() });
        let id = id.as_uuid().as_bytes();
        let time = [&(u64::MAX - number).to_be_bytes()[..], id].concat();
        writes.insert((Table::Deployments, id.to_vec()), Some(row));
        writes.insert((Table::DeploymentTimes, time), Some(Vec::new()));
    }
    world.rows.commit(writes);
    world.now = 2_000;
    world.accepts(order(5_000, &[1], DeploymentPlan::default()));
    let there = |number| world.query().deployment(deployment_id(number)).unwrap().is_some();
    for number in [2, 3, 1_001, 1_999, 5_000] {
        assert!(there(number), "{number} is gone");
    }
    for number in [1, 4, 1_000] {
        assert!(!there(number), "{number} stayed");
    }
    assert_eq!(world.query().deployments(5_000).unwrap().len(), 1_002);
    assert_eq!(world.query().deployment_plan(deployment_id(1)).unwrap(), None);
    assert_eq!(world.query().passed_deadlines(at(u64::MAX), 9).unwrap(), []);
}

#[test]
fn a_retry_is_for_those_that_failed_and_are_there() {
    let mut world = with_agents(3);
    world.accepts(order(1, &[1, 2, 3], DeploymentPlan::default()));
    let retry = || Command::RetryDeployment { id: deployment_id(1), deadline: None };
    assert!(matches!(world.refuses(retry()), Refusal::DeploymentState(_)));
    world.accepts(report(1, 0, failed()));
    world.accepts(report(2, 0, DONE));
    world.accepts(Command::RemoveAgent(peer(3)));
    world.accepts(retry());
    assert_eq!((state(&world, 1), state(&world, 2)), (HostState::Waiting, DONE));
    assert!(matches!(state(&world, 3), HostState::Failed { .. }));
    assert_eq!(told(&world, 3), [1]);
    world.accepts(report(1, 1, HostState::Running));
    assert_eq!(told(&world, 3), [1]);
    // The first attempt's end, sent twice, does not end the second.
    world.accepts(report(1, 0, failed()));
    assert_eq!(state(&world, 1), HostState::Running);
    world.accepts(report(1, 1, failed()));
    assert_eq!(state(&world, 1), failed());
    world.accepts(Command::CancelDeployment { id: deployment_id(1) });
    assert!(matches!(world.refuses(retry()), Refusal::DeploymentState(_)));
}

#[test]
fn a_deadline_ends_what_is_not_done_and_a_retry_sets_another() {
    let mut world = with_agents(3);
    world.now = 100;
    let by = |deadline| DeploymentPlan { deadline: Some(at(deadline)), ..parallel(1) };
    assert!(matches!(world.refuses(order(1, &[1], by(50))), Refusal::DeploymentState(_)));
    world.accepts(order(1, &[1, 2, 3], by(200)));
    let first = told(&world, 3)[0];
    world.accepts(report(first, 0, DONE));
    world.accepts(Command::PassDeadlines { limit: 9 });
    assert_eq!(told(&world, 3).len(), 1);
    assert_eq!(world.query().passed_deadlines(at(199), 9).unwrap(), []);
    world.now = 200;
    world.accepts(Command::PassDeadlines { limit: 9 });
    assert_eq!(told(&world, 3), [] as [u8; 0]);
    let late = |world: &World| {
        let row = world.query().deployment(deployment_id(1)).unwrap().unwrap();
        let late = |state: &&HostState| matches!(state, HostState::Failed { reason } if reason.starts_with("late"));
        row.hosts.values().filter(late).count()
    };
    assert_eq!((late(&world), state(&world, first)), (2, DONE));
    assert_eq!(world.query().passed_deadlines(at(u64::MAX), 9).unwrap(), []);
    let retry = |deadline| Command::RetryDeployment { id: deployment_id(1), deadline };
    assert!(matches!(world.refuses(retry(Some(at(200)))), Refusal::DeploymentState(_)));
    world.accepts(retry(Some(at(300))));
    assert_eq!(told(&world, 3).len(), 1);
    world.now = 300;
    world.accepts(Command::PassDeadlines { limit: 9 });
    world.accepts(retry(None));
    assert_eq!(plan(&world).deadline, None);
    // A deployment that was called off has nothing to be late with.
    world.accepts(order(2, &[1], by(400)));
    world.accepts(Command::CancelDeployment { id: deployment_id(2) });
    assert_eq!(world.query().passed_deadlines(at(u64::MAX), 9).unwrap(), []);
}

#[test]
fn hosts_that_are_agents_no_more_leave_their_place_to_others() {
    let extend = |host| Command::ExtendDeployment { id: deployment_id(1), hosts: peers(&[host]) };
    let mut world = with_agents(3);
    world.accepts(order(1, &[1], DeploymentPlan::default()));
    world.accepts(report(1, 0, DONE));
    fill(&mut world, &DONE);
    world.accepts(extend(2));
    let row = world.query().deployment(deployment_id(1)).unwrap().unwrap();
    assert_eq!(row.hosts.into_keys().collect::<BTreeSet<_>>(), peers(&[1, 2]));
    assert_eq!(told(&world, 2), [2]);
    // Whoever is in line still has its end shown when its turn comes.
    fill(&mut world, &HostState::Queued);
    assert!(matches!(world.refuses(extend(3)), Refusal::Limit(_)));
}

#[test]
fn a_policy_orders_what_its_tag_names_and_gives_up_what_it_named_before() {
    let mut world = with_agents(2);
    let policy = warm_up("base", "vm");
    world.accepts(Command::CreateWarmUp(policy.clone()));
    assert_eq!(world.refuses(Command::CreateWarmUp(policy)), Refusal::Exists(Subject::WarmUp));
    let run = |expected: Option<u64>, id, manifest, hosts: &[u8]| Command::RunWarmUp {
        name: account("base"),
        expected: expected.map(deployment_id),
        id: deployment_id(id),
        digest: digest(manifest),
        hosts: peers(hosts),
    };
    assert!(matches!(world.refuses(run(None, 1, 21, &[1])), Refusal::DeploymentState(_)));
    world.accepts(run(None, 1, 20, &[1]));
    assert_eq!(
        (plan(&world).priority, plan(&world).warm_up),
        (Priority::Low, Some(account("base")))
    );
    // Another leader, which has not heard of it.
    assert!(matches!(world.refuses(run(None, 2, 20, &[1])), Refusal::DeploymentState(_)));

    let extend =
        |hosts: &[u8]| Command::ExtendDeployment { id: deployment_id(1), hosts: peers(hosts) };
    world.accepts(extend(&[1, 2]));
    assert_eq!(told(&world, 2), [1, 2]);
    assert_eq!(plan(&world).attempt(peer(1)), 0, "it was at work already");
    assert_eq!(world.refuses(extend(&[9])), Refusal::NotFound(Subject::Agent));
    world.accepts(report(1, 0, DONE));

    world.accepts(publish_disk("vm", 1, 21, "2.0"));
    world.accepts(run(Some(1), 2, 21, &[1, 2]));
    assert!(world.query().deployment(deployment_id(1)).unwrap().unwrap().cancelled);
    assert!(matches!(world.refuses(extend(&[2])), Refusal::DeploymentState(_)));
    let pending = world.query().pending_deployments(peer(2)).unwrap();
    assert_eq!(pending.iter().map(|one| one.id).collect::<Vec<_>>(), [deployment_id(2)]);

    world.accepts(Command::RemoveWarmUp { name: account("base") });
    assert_eq!(world.query().warm_ups().unwrap(), []);
    assert_eq!(world.query().pending_deployments(peer(2)).unwrap().len(), 1, "it goes on");
    assert_eq!(
        world.refuses(Command::RemoveWarmUp { name: account("base") }),
        Refusal::NotFound(Subject::WarmUp)
    );
}
