//! Lists of tags and repositories, page by page.

use anyhow::{Context, Result, ensure};
use reqwest::{Method, StatusCode};
use serde_json::Value;

use super::super::node::Node;
use super::{expect, push_image, refused};

/// One page, with the path of the next one below `/v2/`.
async fn page(node: &Node, path: &str, list: &str) -> Result<(Vec<String>, Option<String>)> {
    let answer = node.v2(Method::GET, path).send().await?;
    expect(&answer, StatusCode::OK)?;
    let link = answer.headers().get("link").map(|link| link.to_str().map(str::to_owned));
    let next = link.transpose()?.map(|link| {
        let target = link.strip_suffix(">; rel=\"next\"").context("a next link")?;
        Ok::<_, anyhow::Error>(target.strip_prefix("</v2/").context("path-absolute")?.to_owned())
    });
    let body: Value = answer.json().await?;
    let entries = body[list].as_array().with_context(|| format!("no {list} in {body}"))?;
    let entries = entries.iter().filter_map(|entry| entry.as_str().map(str::to_owned)).collect();
    Ok((entries, next.transpose()?))
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_come_in_byte_order_in_pages_that_lead_on() -> Result<()> {
    let node = Node::start().await?;
    let expected = ["1.0", "Z", "a", "b", "latest"];
    for tag in ["latest", "b", "Z", "a", "1.0"] {
        push_image(&node, "a/tags", tag, b"layer").await?;
    }
    let list = async |query: &str| page(&node, &format!("a/tags/tags/list{query}"), "tags").await;
    ensure!(list("").await? == (expected.map(str::to_owned).to_vec(), None));
    ensure!(list("?n=0").await? == (Vec::new(), None));
    ensure!(list("?n=5").await?.1.is_none(), "the whole list has no next page");
    ensure!(list("?last=a").await?.0 == ["b", "latest"]);
    ensure!(list("?last=aa&n=1").await?.0 == ["b"], "last need not be a tag of the list");
    // Nor a tag at all: what comes after that text is what is asked for.
    ensure!(list("?last=").await?.0 == expected.map(str::to_owned));
    ensure!(list("?last=-").await?.0 == expected.map(str::to_owned));
    ensure!(list("?last=a%2F%C3%A9").await?.0 == ["b", "latest"]);
    let (mut all, mut next) = list("?n=2").await?;
    while let Some(path) = next {
        let (more, following) = page(&node, &path, "tags").await?;
        ensure!(!more.is_empty(), "an empty page in the middle");
        all.extend(more);
        next = following;
    }
    ensure!(all == expected);
    let answer = node.v2(Method::GET, "a/tags/tags/list?n=x").send().await?;
    refused(answer, StatusCode::BAD_REQUEST, "PAGINATION_NUMBER_INVALID").await?;
    let answer = node.v2(Method::GET, "a/never/tags/list").send().await?;
    refused(answer, StatusCode::NOT_FOUND, "NAME_UNKNOWN").await?;
    node.server.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_catalogue_lists_repositories_in_pages() -> Result<()> {
    let node = Node::start().await?;
    for name in ["b/y", "a/x", "b/x"] {
        push_image(&node, name, "v1", b"layer").await?;
    }
    ensure!(page(&node, "_catalog", "repositories").await?.0 == ["a/x", "b/x", "b/y"]);
    ensure!(page(&node, "_catalog?last=", "repositories").await?.0.len() == 3);
    ensure!(page(&node, "_catalog?last=a/Z", "repositories").await?.0 == ["a/x", "b/x", "b/y"]);
    ensure!(page(&node, "_catalog?last=b/", "repositories").await?.0 == ["b/x", "b/y"]);
    let (first, next) = page(&node, "_catalog?n=2", "repositories").await?;
    ensure!(first == ["a/x", "b/x"]);
    let next = next.context("there is more")?;
    ensure!(page(&node, &next, "repositories").await? == (vec!["b/y".to_owned()], None));
    node.server.stop().await
}
