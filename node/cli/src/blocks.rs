//! Who is locked out after too many wrong passwords or tokens.

use shoal_api::Block;

use crate::arguments::BlockCommand;
use crate::client::{Client, escaped};
use crate::error::Error;
use crate::screen::{Screen, table};

const PATH: &str = "api/v1/blocks";

pub async fn block(command: &BlockCommand, client: &Client, screen: Screen) -> Result<(), Error> {
    match command {
        BlockCommand::List => {
            let blocks: Vec<Block> = client.get(PATH).await?;
            screen.show(&blocks, || {
                let mut rows = table(&["WHO", "SINCE", "UNTIL", "WHY"]);
                for block in &blocks {
                    let until = block.until.as_deref().unwrap_or("it is let in");
                    rows.add_row([block.who.as_str(), &block.since, until, &block.reason]);
                }
                rows.to_string()
            })
        }
        BlockCommand::Remove { who } => {
            client.delete(format!("{PATH}/{}", escaped(who))).await?;
            let shown = serde_json::json!({ "removed": who });
            screen.show(&shown, || format!("{who} is let in again."))
        }
    }
}
