//! The stream of orders: newline-delimited JSON that stays open at some node.
//!
//! A stream that ends, errs or stays silent for [`SILENCE_MAX`] is opened at the next node, after
//! a pause that grows with jitter and starts again once a stream has spoken. Nothing is lost by
//! that: on opening, a node sends the node list and every order that is still pending. So it is
//! opened anew, too, where no node took the end of an order.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use shoal_api::OrderMessage;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::{Error, NodeClient, chain, refused};

/// A node sends a ping every 10 s at least.
const SILENCE_MAX: Duration = Duration::from_secs(25);
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// The longest line; a node list has a few hundred bytes a node.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Keeps a stream open and hands on what comes, until the receiver is gone.
pub async fn follow(client: Arc<NodeClient>, orders: mpsc::Sender<OrderMessage>) {
    let mut pause = PAUSE_MIN;
    let mut turn = 0;
    while !orders.is_closed() {
        let urls = client.urls();
        let Some(url) = urls.get(turn % urls.len().max(1)) else {
            tokio::time::sleep(PAUSE_MAX).await;
            continue;
        };
        let spoke = match stream(&client, url, &orders).await {
            Ok(()) => return,
            Err((error, spoke)) => {
                debug!(%url, %error, "the order stream ended");
                spoke
            }
        };
        client.metrics.orders_connected.set(0);
        if spoke {
            // That node was good a moment ago; it stands first, so the next in turn is the second.
            pause = PAUSE_MIN;
            turn = 1;
        } else {
            turn += 1;
            pause = (pause * 2).min(PAUSE_MAX);
        }
        // Between a half and the whole, so that hosts do not come back in step.
        let share = rand::rng().random_range(0.5..1.0);
        tokio::time::sleep(pause.mul_f64(share)).await;
    }
}

/// Reads one stream to its end. `Ok` where the receiver is gone; the error says besides whether
/// anything was received.
async fn stream(
    client: &NodeClient,
    url: &str,
    orders: &mpsc::Sender<OrderMessage>,
) -> Result<(), (Error, bool)> {
    let unreachable = |message: String| Error::Unreachable { url: url.to_owned(), message };
    let request = client
        .streaming()
        .get(format!("{url}/api/v1/agents/self/orders"))
        .bearer_auth(client.token())
        .send();
    let response = match tokio::time::timeout(OPEN_TIMEOUT, request).await {
        Err(_) => return Err((unreachable("no answer in time".into()), false)),
        Ok(Err(error)) => return Err((unreachable(chain(&error)), false)),
        Ok(Ok(response)) => response,
    };
    if !response.status().is_success() {
        let error = refused(url, response).await;
        warn!(%url, %error, "the node refuses the order stream");
        return Err((error, false));
    }
    info!(%url, "order stream open");
    client.prefer(url);
    client.metrics.orders_connected.set(1);
    let mut response = response;
    let mut spoke = false;
    let mut buffer = Vec::new();
    loop {
        let part = tokio::select! {
            part = tokio::time::timeout(SILENCE_MAX, response.chunk()) => part,
            () = client.reopen.notified() => {
                return Err((unreachable("its orders are asked for again".into()), spoke));
            }
        };
        let part = match part {
            Err(_) => return Err((unreachable("the order stream fell silent".into()), spoke)),
            Ok(Err(error)) => return Err((unreachable(chain(&error)), spoke)),
            Ok(Ok(None)) => return Err((unreachable("the order stream ended".into()), spoke)),
            Ok(Ok(Some(part))) => part,
        };
        buffer.extend_from_slice(&part);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            let line = line.trim_ascii();
            if line.is_empty() {
                continue;
            }
            spoke = true;
            match serde_json::from_slice(line) {
                Ok(OrderMessage::Ping) => {}
                Ok(order) => {
                    if orders.send(order).await.is_err() {
                        return Ok(());
                    }
                }
                // A newer node may say what this agent does not know yet.
                Err(error) => warn!(%url, %error, "an order was not understood"),
            }
        }
        if buffer.len() > LINE_BYTES_MAX {
            let message = format!("a line of more than {LINE_BYTES_MAX} bytes");
            return Err((Error::Answer { url: url.to_owned(), message }, spoke));
        }
    }
}
