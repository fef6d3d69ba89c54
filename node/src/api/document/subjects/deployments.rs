//! Orders to put versions on hosts, and the machines that carry them out.

use shoal_api::OrderMessage;

use super::super::note::{Subject, delete, get, post};

pub fn deployments() -> Subject {
    Subject {
        name: "Deployments",
        about: "One order: this version, on those hosts.",
        notes: vec![
            get("/api/v1/deployments", "Lists the orders that the asker may see").about(
                "The newest first: 200 at most, and as many of them as have 50,000 hosts together, \
                    but always one.",
            ),
            post("/api/v1/deployments", "Orders a version onto hosts")
                .status(201)
                .refuses(
                    400,
                    "selector_invalid reference_invalid parallel_invalid deadline_invalid",
                )
                .refuses(404, "agent_not_found image_not_found tag_not_found version_not_found")
                .refuses(404, "not_found")
                .refuses(409, "vulnerable"),
            get("/api/v1/deployments/{deployment}", "Shows an order with its hosts' progress")
                .refuses(404, "deployment_not_found"),
            post("/api/v1/deployments/{deployment}/cancel", "Takes an order back")
                .refuses(404, "deployment_not_found not_found"),
            post("/api/v1/deployments/{deployment}/pause", "Holds an order up: no host goes on")
                .refuses(404, "deployment_not_found not_found")
                .refuses(409, "wrong_state"),
            post("/api/v1/deployments/{deployment}/resume", "Lets an order that is held up go on")
                .refuses(404, "deployment_not_found not_found")
                .refuses(409, "wrong_state"),
            post("/api/v1/deployments/{deployment}/retry", "Lets the hosts that failed try again")
                .refuses(400, "deadline_invalid")
                .refuses(404, "deployment_not_found not_found")
                .refuses(409, "wrong_state"),
            get("/api/v1/deployments/{deployment}/events", "Follows an order")
                .about(
                    "Events `deployment`, each with the whole order as its data; the stream ends \
                        after the final state.",
                )
                .refuses(404, "deployment_not_found"),
        ],
    }
}

pub fn warm_ups() -> Subject {
    Subject {
        name: "Warm-ups",
        about: "Policies that keep a tag on hosts: whenever it moves, or such a host comes.",
        notes: vec![
            get("/api/v1/warm-ups", "Lists the policies that the asker may see"),
            post(
                "/api/v1/warm-ups",
                "Makes a policy: this tag, on hosts with these labels, always",
            )
            .status(201)
            .refuses(400, "reference_invalid selector_invalid parallel_invalid")
            .refuses(404, "image_not_found tag_not_found version_not_found not_found")
            .refuses(409, "warm_up_exists"),
            get("/api/v1/warm-ups/{warm_up}", "Shows a policy, and what it ordered last")
                .refuses(404, "warm_up_not_found"),
            delete("/api/v1/warm-ups/{warm_up}", "Ends a policy; what it has ordered goes on")
                .refuses(404, "warm_up_not_found not_found"),
        ],
    }
}

pub fn agents() -> Subject {
    Subject {
        name: "Agents",
        about: "The daemons on hosts. An agent signs its own short-lived tokens.",
        notes: vec![
            get("/api/v1/join-tokens", "Lists the tokens that machines join with"),
            post("/api/v1/join-tokens", "Makes a join token; its text is shown this once")
                .status(201)
                .refuses(400, "role_invalid ttl_invalid uses_invalid"),
            delete("/api/v1/join-tokens/{token}", "Takes a join token back")
                .refuses(404, "not_found"),
            get("/api/v1/agents", "Lists the agents")
                .about("By name, at most 1000 in one answer; a Link leads on."),
            post("/api/v1/agents/enrol", "Enrols an agent by a join token")
                .refuses(400, "name_invalid role_invalid labels_invalid request_invalid")
                .refuses(403, "join_token join_token_distrusted locked")
                .refuses(409, "agent_exists"),
            delete("/api/v1/agents/{agent}", "Removes an agent, by name or id")
                .refuses(404, "agent_not_found not_found"),
            post("/api/v1/agents/self/resolve", "Gives an agent the right to a version's bytes")
                .about(
                    "With `whole`, what nodes lack of another registry's image is asked for there, and \
                     counted in `awaited` until it is here.",
                )
                .refuses(400, "too_many_blobs index_too_large")
                .refuses(404, "image_not_found tag_not_found version_not_found blob_not_found")
                .refuses(404, "platform_not_found"),
            post("/api/v1/agents/self/certificate", "Gives an agent another certificate for its key")
                .refuses(400, "request_invalid"),
            post("/api/v1/agents/self/delta", "Gives an agent a bundle in place of new chunks")
                .about("It leads from a version that the agent has to the one that it wants.")
                .refuses(400, "too_many_disks")
                .refuses(404, "image_not_found tag_not_found version_not_found"),
            get("/api/v1/agents/self/orders", "Streams an agent its orders")
                .about("One JSON object a line, each an `OrderMessage`; stays open.")
                .gives_lines::<OrderMessage>(200, "The orders.")
                .refuses(429, "too_many"),
            post("/api/v1/agents/self/progress", "Says how far a transfer is")
                .refuses(400, "report_too_long state_invalid")
                .refuses(404, "deployment_not_found not_found"),
        ],
    }
}

pub fn cluster() -> Subject {
    Subject {
        name: "Cluster",
        about: "The nodes, and how they work together.",
        notes: vec![
            get("/api/v1/cluster", "Shows the nodes and who leads"),
            post("/api/v1/cluster/join", "Takes a node in by a join token")
                .refuses(400, "name_invalid address_invalid request_invalid")
                .refuses(403, "join_token join_token_distrusted locked")
                .refuses(409, "node_exists node_too_old"),
            post("/api/v1/cluster/upgrade", "Raises the level to what every node knows")
                .refuses(409, "node_too_old"),
            get("/api/v1/cluster/keys", "Lists the keys that tokens and tickets are signed with"),
            post("/api/v1/cluster/keys/{purpose}/rotate", "Makes a new key to sign with")
                .about(
                    "It signs after an hour, and what the old one signed holds to its end. With \
                     `distrust` it signs at once, and nothing holds that those before it signed: \
                     people log in again, agents ask for new tickets.",
                )
                .refuses(404, "key_not_found")
                .refuses(409, "exists"),
            get("/api/v1/cluster/authority", "Shows the authorities that sign certificates"),
            post(
                "/api/v1/cluster/authority/rotate",
                "Puts another authority in place of the one that signs",
            )
            .about(
                "It signs after a day, once every node believes it; the one before is retired \
                     thirty days later, once every node shows a certificate of the new one. With \
                     `now` both come as soon as the nodes are ready, and join tokens of before are \
                     good no longer: for a key that others may have.",
            )
            .refuses(404, "not_found")
            .refuses(409, "exists level_too_low rotation_under_way"),
            get(
                "/api/v1/cluster/encryption",
                "Shows whether objects are sealed, and by which keys",
            ),
            post("/api/v1/cluster/encryption/rotate", "Goes over to new keys")
                .about(
                    "No object is rewritten. Without a project, the newest master key of the node \
                     that answers wraps all data keys; every node must have it. With one, the \
                     project gets a new data key, and the old one goes on opening what it sealed.",
                )
                .refuses(400, "name_invalid")
                .refuses(409, "encryption_off exists master_key_missing")
                .refuses(404, "not_found"),
            delete("/api/v1/cluster/nodes/{node}", "Takes a node out for good")
                .about(
                    "Not where too few of those that stay answer to agree on anything without it, \
                     unless with `force`: then nothing can be changed before they come back.",
                )
                .refuses(404, "not_found")
                .refuses(409, "last_node too_few_nodes"),
            post("/api/v1/cluster/pulls", "Writes down the pulls that this node has noted").about(
                "For the other nodes, before one of them judges by when images were pulled.",
            ),
            get("/api/v1/cluster/reports/{deployment}", "Says what this node heard of an order")
                .about("For the other nodes; by the agent's id.")
                .refuses(404, "deployment_not_found"),
            get("/api/v1/cluster/streams", "Lists the agents whose orders stream from this node")
                .about("For the other nodes."),
        ],
    }
}
