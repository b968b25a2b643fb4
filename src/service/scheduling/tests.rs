//! Who is served when.

use super::*;
use crate::identity::UnixPeer;

fn caller(uid: u32) -> Caller {
    Caller::Unix(UnixPeer { uid, gid: 0, pid: 1, groups: Vec::new() })
}

/// Who was served in which order; each piece is done as soon as it began.
async fn order(bounds: Bounds, asked: &[(u32, u32, Rank)]) -> Vec<u32> {
    let scheduler = Scheduler::new(bounds);
    let never = std::future::pending::<()>;
    // Something of somebody else is under way until all are in line.
    let mut held = Vec::new();
    while scheduler.state().fits(&bounds, 0, 1) {
        let who = caller(0);
        let slot = scheduler.slot(&who, (Cost(1), Rank::Other), THERE, never());
        held.push(slot.await.expect("room"));
    }
    let (done, mut order) = tokio::sync::mpsc::unbounded_channel();
    for &(uid, cost, rank) in asked {
        let (scheduler, done) = (Arc::clone(&scheduler), done.clone());
        tokio::spawn(async move {
            let who = caller(uid);
            let slot = scheduler.slot(&who, (Cost(cost), rank), THERE * 60, never()).await;
            let _slot = slot.expect("its turn");
            let _ = done.send(uid);
            tokio::task::yield_now().await;
        });
        tokio::task::yield_now().await;
    }
    drop((done, held));
    let mut served = Vec::new();
    while let Some(uid) = order.recv().await {
        served.push(uid);
    }
    let state = scheduler.state();
    assert_eq!((state.waiting, state.pieces, state.cost), (0, 0, 0));
    served
}

#[tokio::test]
async fn who_comes_later_with_little_waits_for_one_of_those_before() {
    let mut asked = vec![(1, 8, Rank::Other); 40];
    asked.extend([(2, 1, Rank::Other); 8]);
    let served = order(Bounds::ONE_BY_ONE, &asked).await;
    let last = served.iter().rposition(|uid| *uid == 2).expect("served");
    assert!(last <= 10, "eight small ones are worth one large one: {served:?}");
}

#[tokio::test]
async fn principals_with_the_same_work_take_turns() {
    let asked: Vec<_> = [1, 2, 3].into_iter().flat_map(|uid| [(uid, 5, Rank::Other); 10]).collect();
    let served = order(Bounds::ONE_BY_ONE, &asked).await;
    for (at, uid) in [1, 2, 3].into_iter().enumerate() {
        let early = served[..15].iter().filter(|served| **served == uid).count();
        assert_eq!(early, 5, "{at}: {served:?}");
    }
}

#[tokio::test]
async fn rotations_go_first_and_keep_nothing_out_for_good() {
    let mut asked = vec![(1, 10, Rank::Other); 12];
    asked.extend([(2, 10, Rank::First); 20]);
    let served = order(Bounds::ONE_BY_ONE, &asked).await;
    assert_eq!(served[..IN_A_ROW as usize], [2; IN_A_ROW as usize]);
    assert_eq!(served.iter().take(15).filter(|uid| **uid == 1).count(), 3, "{served:?}");
}

#[tokio::test]
async fn one_that_is_alone_has_all_and_leaves_room_for_another() {
    let bounds = Bounds::for_processors(2);
    let scheduler = Scheduler::new(bounds);
    let never = std::future::pending::<()>;
    let now = Duration::ZERO;
    let ask = |uid: u32, cost: u32| {
        let scheduler = Arc::clone(&scheduler);
        async move { scheduler.slot(&caller(uid), (Cost(cost), Rank::Other), now, never()).await }
    };
    let mut held = Vec::new();
    while let Ok(slot) = ask(1, 1).await {
        held.push(slot);
    }
    assert_eq!(held.len(), 16);
    assert!(ask(2, 1).await.is_err(), "all that may be is under way");
    held.truncate(8);
    assert!(ask(1, 1).await.is_err(), "it is not alone any more, and has more than its part");
    let other = ask(2, 8).await.expect("there is room for another");
    drop((held, other));
    let large = [ask(1, 8).await.is_ok(), ask(1, 8).await.is_ok()];
    assert_eq!(large, [true, true], "each processor may have one, whatever it costs");
}

#[tokio::test]
async fn who_gives_up_or_need_not_wait_holds_nothing() {
    let scheduler = Scheduler::new(Bounds::ONE_BY_ONE);
    let work = (Cost(1), Rank::Other);
    let never = std::future::pending::<()>;
    let held = scheduler.slot(&caller(1), work, THERE, never()).await.expect("room");
    let late = scheduler.slot(&caller(2), work, Duration::from_millis(1), never()).await;
    assert!(matches!(late, Err(TooMuchToDo)));
    let waived = scheduler.slot(&caller(3), work, THERE, std::future::ready(())).await;
    assert!(waived.expect("waived").held.is_none());
    let own = scheduler.slot(&Caller::System("sweep"), work, THERE, never()).await;
    assert!(own.expect("nobody's").held.is_none());
    drop(held);
    let next = scheduler.slot(&caller(4), work, Duration::ZERO, never()).await;
    assert!(next.is_ok());
    drop(next);
    let state = scheduler.state();
    assert_eq!((state.pieces, state.waiting), (0, 0));
}
