//! Three nodes, and what a transaction may and may not do while links between them are cut.

use crate::common::{get, key, put, set};
use base::TabletId;
use base::env::FaultyNet;
use std::time::Duration;
use txn::testing::{TestNode, address, guest, member};
use txn::{Isolation, LockMode, Locked, Wait};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longer than a proposer waits for an answer before it says that it is lost.
const GIVEN_UP: Duration = Duration::from_secs(4);

struct Trio {
    nodes: Vec<TestNode>,
    net: FaultyNet,
    _dirs: Vec<tempfile::TempDir>,
}

impl Trio {
    async fn start() -> Trio {
        let net = FaultyNet::default();
        let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        let starting = (1..=3).zip(&dirs).map(|(id, dir)| member(dir.path(), &net, id, 3));
        let nodes = futures::future::try_join_all(starting).await.unwrap();
        Trio { nodes, net, _dirs: dirs }
    }

    /// The node that leads both tablets, and the other two.
    async fn roles(&self) -> (&TestNode, Vec<&TestNode>) {
        let leader = self.leader(TabletId::FIRST_DATA).await;
        let root = self.leader(TabletId::ROOT).await;
        if root.id() != leader.id() {
            root.hand_over(TabletId::ROOT, leader.id()).await.unwrap();
            let takes_over = || leader.term(TabletId::ROOT);
            until("the root's leader", takes_over).await;
        }
        (leader, self.nodes.iter().filter(|node| node.id() != leader.id()).collect())
    }

    async fn leader(&self, tablet: TabletId) -> &TestNode {
        until("a leader", || self.nodes.iter().find(|node| node.term(tablet).is_some())).await
    }

    fn cut(&self, a: &TestNode, b: &TestNode) {
        self.net.cut(address(a.id().0), address(b.id().0));
    }

    fn cut_all(&self) {
        for (at, a) in self.nodes.iter().enumerate() {
            self.nodes[..at].iter().for_each(|b| self.cut(a, b));
        }
    }
}

async fn until<T>(what: &str, condition: impl Fn() -> Option<T>) -> T {
    let looking = async {
        loop {
            match condition() {
                Some(found) => return found,
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    let found = tokio::time::timeout(PATIENCE, looking).await;
    found.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// Those who wait for the same look at the nodes' replicas must not take each other for the one
/// who looked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_look_for_a_key_at_once_find_it() {
    let net = FaultyNet::default();
    let dirs: Vec<_> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
    let newcomer = guest(dirs[3].path(), &net, 3).await.unwrap();
    let looking: Vec<_> = (0..4)
        .map(|_| {
            let client = newcomer.client.clone();
            tokio::spawn(async move {
                let mut txn = client.begin(Isolation::ReadCommitted);
                txn.get_only(&[key("a")]).await
            })
        })
        .collect();
    let starting = (1..=3).zip(&dirs).map(|(id, dir)| member(dir.path(), &net, id, 3));
    let _members = futures::future::try_join_all(starting).await.unwrap();
    for found in looking {
        assert_eq!(found.await.unwrap().unwrap(), [None]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_answers_the_past_alone_and_the_present_never() {
    let trio = Trio::start().await;
    let (leader, others) = trio.roles().await;
    set(&leader.client, &[("a", "1")]).await;
    let mut reader = others[0].client.begin(Isolation::RepeatableRead);
    let snapshot = reader.snapshot().await.unwrap();
    set(&leader.client, &[("a", "2")]).await;
    let closed = || (others[0].closed(TabletId::FIRST_DATA) >= snapshot).then_some(());
    until("the snapshot to be closed", closed).await;

    trio.cut(others[0], leader);
    trio.cut(others[0], others[1]);
    let soon = Duration::from_secs(2);
    let past = tokio::time::timeout(soon, get(&mut reader, "a")).await;
    assert_eq!(past.expect("answered here").unwrap().unwrap(), "1");
    let mut present = others[0].client.begin(Isolation::ReadCommitted);
    let present = tokio::time::timeout(soon, get(&mut present, "a")).await;
    assert!(!matches!(present, Ok(Ok(_))), "{present:?}");
}

/// A leader that has lost everybody stays in office, and what it proposed may be committed when
/// they come back, long after the proposer has given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_still_be_committed_keeps_its_locks() {
    let trio = Trio::start().await;
    let (leader, others) = trio.roles().await;
    set(&leader.client, &[("a", "1")]).await;
    let term = leader.term(TabletId::FIRST_DATA);
    let mut first = leader.client.begin(Isolation::ReadCommitted);
    put(&mut first, "a", "2").await.unwrap();
    trio.cut_all();
    let first = tokio::spawn(first.commit());
    let client = leader.client.clone();
    let second = tokio::spawn(async move {
        let mut second = client.begin(Isolation::ReadCommitted);
        let held = second.lock(&[key("a")], LockMode::Exclusive, Wait::Block).await?;
        second.rollback().await;
        Ok::<_, txn::Error>(held)
    });
    tokio::time::sleep(GIVEN_UP).await;
    assert!(!first.is_finished() && !second.is_finished(), "nothing is certain yet");
    trio.net.heal();
    // Only one of them hears of the leader at first, so that it stays the leader.
    trio.cut(others[1], leader);
    trio.cut(others[1], others[0]);
    first.await.unwrap().unwrap();
    let held = second.await.unwrap().unwrap();
    assert_eq!(leader.term(TabletId::FIRST_DATA), term, "the leader was to go on");
    let Locked::Held { row: Some(row) } = &held[0] else { panic!("{held:?}") };
    assert_eq!(&row.value[..], b"2", "the lock was given before the commit was certain");
}

/// Whoever leads by hearsay: the lock table is where the locks were given.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_goes_where_its_locks_are() {
    let trio = Trio::start().await;
    let (leader, others) = trio.roles().await;
    let dir = tempfile::tempdir().unwrap();
    let guest = guest(dir.path(), &trio.net, 3).await.unwrap();
    for isolation in [Isolation::ReadCommitted, Isolation::Serializable] {
        let mut txn = guest.client.begin(isolation);
        assert_eq!(get(&mut txn, "b").await.unwrap(), None);
        put(&mut txn, "a", "1").await.unwrap();
        guest.mislead(TabletId::FIRST_DATA, others[0].id());
        txn.commit().await.unwrap();
    }
    let mut reader = leader.client.begin(Isolation::ReadCommitted);
    assert_eq!(get(&mut reader, "a").await.unwrap().unwrap(), "1");
}

/// A replica that was left out of its tablet is never told who leads after that. Its node asks
/// others, whatever that replica believes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_left_out_of_a_tablet_finds_its_leader_all_the_same() {
    const TABLET: TabletId = TabletId::FIRST_DATA;
    let trio = Trio::start().await;
    let (leader, others) = trio.roles().await;
    let dir = tempfile::tempdir().unwrap();
    let guest = guest(dir.path(), &trio.net, 3).await.unwrap();
    // A change that is broken off while it waits for the newcomer leaves a learner behind. One
    // that voted would campaign when it hears nothing, and be told.
    let is_learner = |node: &TestNode| node.members(TABLET).contains(&guest.id()).then_some(());
    let wanted = [leader.id(), others[0].id(), guest.id()];
    tokio::select! {
        changed = leader.change_members(TABLET, &wanted) => {
            panic!("the newcomer cannot be reached yet: {changed:?}")
        }
        () = until("the learner", || is_learner(leader)) => {}
    }
    trio.nodes.iter().for_each(|node| node.meet(guest.id()));
    until("the learner's replica", || is_learner(&guest)).await;
    let voters: Vec<_> = trio.nodes.iter().map(TestNode::id).collect();
    leader.change_members(TABLET, &voters).await.unwrap();
    leader.hand_over(TABLET, others[0].id()).await.unwrap();
    until("the next leader", || others[0].term(TABLET)).await;

    let written = tokio::time::timeout(PATIENCE, set(&guest.client, &[("a", "1")])).await;
    written.expect("whoever led is asked for ever");
    let mut reader = others[0].client.begin(Isolation::ReadCommitted);
    assert_eq!(get(&mut reader, "a").await.unwrap().unwrap(), "1");
}
