//! What is said of images when they are made and described anew.

use anyhow::{Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use shoal_api::{Image, ImageDetail, UploadStarted};

use super::node::Node;

#[tokio::test(flavor = "multi_thread")]
async fn null_is_read_as_nothing_said() -> Result<()> {
    let node = Node::start().await?;
    let request = json!({
        "name": "zedge/vm", "display_name": null, "description": null, "image_type": null,
        "os_type": null, "os_version": null, "architecture": null, "format": null,
        "visibility": null, "min_cpu_cores": null, "min_memory_mb": null, "min_disk_gb": null,
        "recommended_cpu_cores": null, "recommended_memory_mb": null,
        "recommended_disk_gb": null, "labels": null, "annotations": null,
    });
    let image: Image = node.call(Method::POST, "images", &request).await?;
    ensure!(image.format == "qcow2" && image.labels.is_empty(), "{image:?}");
    let path = format!("images/{}", image.id);
    let described: ImageDetail =
        node.call(Method::PUT, &path, &json!({ "description": "kept" })).await?;
    ensure!(described.image.description == "kept", "{described:?}");
    let nothing = json!({ "description": null, "labels": null, "min_cpu_cores": null });
    let described: ImageDetail = node.call(Method::PUT, &path, &nothing).await?;
    ensure!(described.image.description == "kept", "{described:?}");
    let init = json!({
        "version": "1.0.0", "total_size_bytes": 1024, "chunk_size_bytes": null, "format": null,
        "tags": null, "changelog": null, "build_info": null,
        "manifest": { "format": null, "layers": null },
    });
    let init_path = format!("{path}/versions/upload/init");
    let begun: UploadStarted = node.call(Method::POST, &init_path, &init).await?;
    ensure!(begun.total_chunks == 1, "{begun:?}");
    // What is needed is needed.
    let nameless = node.request(Method::POST, "images").json(&json!({ "name": null }));
    let nameless = nameless.send().await?;
    ensure!(nameless.status().as_u16() == 422, "{}", nameless.status());
    let refused: Value = nameless.json().await?;
    ensure!(refused["code"] == "body_invalid", "{refused}");
    node.server.stop().await
}
