//! What is forged, of another cluster, or of a Meta that is over.

use super::*;

#[tokio::test]
async fn what_is_not_ours_is_counted_and_changes_nothing() {
    let dir = Dir::new("meta-bad");
    let (port, metrics) = (free_port(), free_port());
    let config = config(&dir, "c1", &[port], &format!("metrics = \"127.0.0.1:{metrics}\"\n"));
    let meta = Running::start(&config).await;
    let good = Envelope {
        version: VERSION,
        cluster: "c1".into(),
        from: NodeId::Scvm(A),
        incarnation: Incarnation(1),
        seq: 1,
        msg: ToMeta::SessionOpen { boot: Incarnation(1), health: well() },
    };
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let post = async |body: Vec<u8>, mac: String| {
        let url = format!("http://127.0.0.1:{port}/v1/message");
        let answer = http.post(url).header(MAC_HEADER, mac).body(body).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let signed = async |envelope: &Envelope| {
        let body = serde_json::to_vec(envelope).unwrap();
        let mac = keys::message_mac(&config.key, "/v1/message", &body);
        post(body, mac).await
    };
    let body = serde_json::to_vec(&good).unwrap();
    let mac = keys::message_mac(&config.key, "/v1/message", &body);
    let forged = keys::message_mac(&crate::config::ClusterKey(vec![1; 32]), "/v1/message", &body);
    assert_eq!(post(body.clone(), forged).await.0, 401);
    assert_eq!(post(body.clone(), String::new()).await.0, 401);
    let mut bent = body.clone();
    bent[20] ^= 1;
    assert_eq!(post(bent, mac.clone()).await.0, 401);
    assert_eq!(post(body[..body.len() - 5].to_vec(), mac.clone()).await.0, 401);
    let cut = body[..body.len() - 5].to_vec();
    let cut_mac = keys::message_mac(&config.key, "/v1/message", &cut);
    assert_eq!(post(cut, cut_mac).await.0, 400);
    assert_eq!(post(vec![b' '; http::BODY_LIMIT + 1], mac.clone()).await.0, 413);
    let named = [
        (Envelope { version: 9, ..good.clone() }, 400, r#""name":"version""#),
        (Envelope { cluster: "c2".into(), ..good.clone() }, 403, r#""name":"cluster""#),
        (Envelope { from: NodeId::Scvm(ScvmId(9)), ..good.clone() }, 403, r#""name":"unknown_node""#),
        (Envelope { from: HOST, ..good.clone() }, 403, r#""name":"wrong_sender""#),
        (Envelope { from: HOST, seq: 2, msg: wish(4, A), ..good.clone() }, 409, r#""name":"stale_epoch""#),
    ];
    for (envelope, want, name) in named {
        let (code, text) = signed(&envelope).await;
        assert!(code == want && text.contains(name), "{envelope:?}: {code} {text}");
    }
    let stream = http.get(format!("http://127.0.0.1:{port}/v1/push/host/1")).send().await.unwrap();
    assert_eq!(stream.status().as_u16(), 401, "a push stream needs the key too");

    let view = &status(&config).await["view"];
    assert!(view["sessions"].as_array().unwrap().iter().all(|s| s["state"] == "absent"), "{view}");
    assert_eq!(view["logins"].as_array().unwrap().len(), 0);
    let text =
        http.get(format!("http://127.0.0.1:{metrics}/metrics")).send().await.unwrap().text().await.unwrap();
    for (reason, count) in [
        ("mac", 5),
        ("malformed", 2),
        ("version", 1),
        ("cluster", 1),
        ("node", 1),
        ("sender", 1),
        ("epoch", 1),
    ] {
        let line = format!("reroute_meta_messages_rejected_total{{reason=\"{reason}\"}} {count}");
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    assert!(text.lines().any(|l| l == "reroute_meta_sessions{state=\"absent\"} 3.0"), "{text}");
    assert!(text.trim_end().ends_with("# EOF"));
    assert_eq!(signed(&good).await.0, 200, "and what is ours is taken in");
    meta.stop().await;
}

/// A line that is not Meta's is dropped and counted, and does not keep the stream alive; genuine ones around it pass.
#[tokio::test]
async fn forged_push_lines_are_dropped() {
    let dir = Dir::new("push");
    let port = free_port();
    let config = config(&dir, "c1", &[port], "");
    let direction = push_direction(HOST);
    let line = |seq: u64, key: &crate::config::ClusterKey, direction: &str| {
        let order = Order::At { scvm: A, epoch: Epoch(seq) };
        let json = serde_json::to_string(&FromMeta { term: Term(1), seq, order }).unwrap();
        format!("{} {json}\n", keys::message_mac(key, direction, json.as_bytes()))
    };
    let forged = line(2, &crate::config::ClusterKey(vec![1; 32]), &direction);
    let elsewhere = line(3, &config.key, "push/host/2");
    let first = line(1, &config.key, &direction);
    let json = serde_json::to_string(&FromMeta {
        term: Term(1),
        seq: 0,
        order: Order::Hello { cluster: "c1".into() },
    });
    let json = json.unwrap();
    let hello = format!("{} {json}\n", keys::message_mac(&config.key, &direction, json.as_bytes()));
    let lines =
        [hello, first.clone(), forged, elsewhere, "noise\n".into(), first, line(4, &config.key, &direction)];
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let router = axum::Router::new().route(
        "/v1/push/host/1",
        axum::routing::get(move || async move {
            use futures_util::StreamExt;
            let sent = futures_util::stream::iter(lines.map(Ok::<_, std::convert::Infallible>));
            axum::body::Body::from_stream(sent.chain(futures_util::stream::pending()))
        }),
    );
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    let mut host = Agent::start(&config, HOST);
    stands(&mut host, (A, 1)).await;
    stands(&mut host, (A, 4)).await;
    let counters = host.client.counters();
    assert_eq!((counters.bad_mac.get(), counters.malformed.get(), counters.copies.get()), (2, 1, 1));
    // Then it says nothing more: dropped as silent.
    let why = host
        .event("Down", |e| match e {
            LinkEvent::Down { why, .. } => Some(why.clone()),
            _ => None,
        })
        .await;
    assert!(why.contains("silent"), "{why}");
    server.abort();
}

/// Another cluster's Meta at one of our addresses, with our key: its stream and its answers are refused by name, once, and
/// ours goes on.
#[tokio::test]
async fn a_meta_of_another_cluster_is_refused_by_name() {
    let (dir, other_dir) = (Dir::new("meta-ours"), Dir::new("meta-other"));
    let (ours_at, theirs_at) = (free_port(), free_port());
    let ours = config(&dir, "c1", &[ours_at], "");
    let theirs = config(&other_dir, "c2", &[theirs_at], "");
    let both = {
        let mut both = ours.clone();
        both.cluster.meta.insert(0, ([127, 0, 0, 1], theirs_at).into());
        both
    };
    let (meta, other) = (Running::start(&ours).await, Running::start(&theirs).await);
    let mut scvm = Agent::start(&both, NodeId::Scvm(A));
    let why = scvm.event("Stranger", |e| match e {
        LinkEvent::Stranger { why, .. } => Some(why.clone()),
        _ => None,
    });
    let why = why.await;
    assert!(why.contains("\"c2\"") && why.contains("[cluster]"), "{why}");
    assert_eq!(scvm.client.strangers(), [why]);
    for _ in 0..20 {
        let (term, _) = scvm.open_session().await;
        assert_eq!(term, Term(1));
    }
    // Said once, however often it is tried again.
    let again =
        async { scvm.event("no other", |e| matches!(e, LinkEvent::Stranger { .. }).then_some(())).await };
    assert!(timeout(Duration::from_secs(2), again).await.is_err());
    meta.stop().await;
    let lone = scvm.client.send(ToMeta::SessionOpen { boot: Incarnation(1), health: well() }).await;
    assert!(matches!(lone, Err(SendError::Stranger { .. })), "{lone:?}");
    other.stop().await;
}

/// Two Metas of one cluster on stores of their own: whoever has the lower term is refused by name.
#[tokio::test]
async fn of_two_metas_the_lower_term_is_refused() {
    let (dir, other_dir) = (Dir::new("meta-high"), Dir::new("meta-low"));
    let (high_at, low_at) = (free_port(), free_port());
    let high = config(&dir, "c1", &[high_at], "");
    let low = config(&other_dir, "c1", &[low_at], "");
    for _ in 0..2 {
        Running::start(&high).await.stop().await;
    }
    let (meta, other) = (Running::start(&high).await, Running::start(&low).await);
    let both = {
        let mut both = low.clone();
        both.cluster.meta.push(([127, 0, 0, 1], high_at).into());
        both
    };
    let mut scvm = Agent::start(&both, NodeId::Scvm(A));
    let why = scvm.event("Stranger", |e| match e {
        LinkEvent::Stranger { why, .. } => Some(why.clone()),
        _ => None,
    });
    let why = why.await;
    assert!(why.contains("two Metas") && why.contains(&low_at.to_string()), "{why}");
    for _ in 0..20 {
        let (term, _) = scvm.open_session().await;
        assert_eq!(term, Term(3));
    }
    meta.stop().await;
    other.stop().await;
}
