"""Every metric of the program. Names that start with ``dranet_driver_`` are the reference's and keep its meaning."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram, generate_latest

_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

DRA_REQUESTS = Counter(
    "dranet_driver_dra_plugin_requests",
    "Calls of kubelet; failed if any claim in it failed.",
    ["method", "status"],
)
DRA_LATENCY = Histogram(
    "dranet_driver_dra_plugin_requests_latency_seconds", "Time of a call of kubelet.", ["method"], buckets=_FAST
)
NRI_REQUESTS = Counter(
    "dranet_driver_nri_plugin_requests",
    "Calls of the container runtime; noop where the pod has no device of this driver.",
    ["method", "status"],
)
NRI_LATENCY = Histogram(
    "dranet_driver_nri_plugin_requests_latency_seconds",
    "Time of a call of the container runtime.",
    ["method", "status"],
    buckets=_FAST,
)
PUBLISHED_DEVICES = Gauge("dranet_driver_published_devices_total", "Devices in the ResourceSlices.", ["feature"])
LAST_PUBLISHED = Gauge(
    "dranet_driver_last_published_time_seconds", "When ResourceSlices were last written (Unix time)."
)

NRI_CONNECTED = Gauge("nri_dranet_nri_connected", "1 while the container runtime's NRI has this plugin registered.")
NRI_CONNECTS = Counter("nri_dranet_nri_connects", "Attempts to join the container runtime.", ["result"])
KUBELET_REGISTERED = Gauge("nri_dranet_kubelet_registered", "1 while kubelet has registered this plugin.")
CLAIMS = Gauge("nri_dranet_claims", "Claims in the journal.", ["state"])
ATTACHES = Counter("nri_dranet_attaches", "Devices attached, by result and reason of a failure.", ["result", "reason"])
DHCP = Counter("nri_dranet_dhcp_requests", "DHCP exchanges, by what was asked and result.", ["action", "result"])
DHCP_LEASES = Gauge("nri_dranet_dhcp_leases", "DHCP leases of claims in the journal.", ["state"])
DETACHES = Counter("nri_dranet_detaches", "Devices given back, by result.", ["result"])
RECONCILE_ACTIONS = Counter("nri_dranet_reconcile_actions", "What the reconciler did.", ["action"])
EVICTIONS = Counter("nri_dranet_evictions", "Pods without their device that were to be evicted, by result.", ["result"])
QUARANTINED = Counter("nri_dranet_journal_quarantined", "Journal rows that could not be read and were set aside.")
STATUS_WRITES = Counter("nri_dranet_status_writes", "Writes of claim status, by result.", ["result"])
STATUS_LAG = Histogram(
    "nri_dranet_status_lag_seconds", "From a fact to its written status.", buckets=(*_FAST, 30, 60, 300)
)
STATUS_PENDING = Gauge("nri_dranet_status_pending", "Claims whose status waits to be written.")
CONDITIONS = Gauge(
    "nri_dranet_conditions",
    "Conditions of devices in the statuses written, of claims that the node holds.",
    ["type", "status", "reason"],
)
SLICE_WRITES = Counter("nri_dranet_slice_writes", "Writes of ResourceSlices, by verb and result.", ["verb", "result"])
SLICE_FIELDS_DROPPED = Counter(
    "nri_dranet_slice_fields_dropped", "Fields of devices that the API server did not keep, once each.", ["field"]
)
REFUSED_DEVICES = Gauge("nri_dranet_refused_devices", "Devices left out because the API server refuses them.")
ATTRIBUTES_DROPPED = Counter("nri_dranet_attributes_dropped", "Attributes left out, by name.", ["attribute"])
FILTER_OVERRIDDEN = Gauge(
    "nri_dranet_filter_override",
    "1 while the Node's annotation is used as filter, or is refused because it is no expression.",
    ["state"],
)
INVENTORY_RESYNCS = Counter("nri_dranet_inventory_resyncs", "Full scans of the node's links.", ["cause"])
INVENTORY_EVENTS = Counter("nri_dranet_inventory_events", "Netlink events taken in.", ["kind"])
INVENTORY_DEVICES = Gauge("nri_dranet_inventory_devices", "Devices known on the node.")
API_REQUESTS = Counter("nri_dranet_api_requests", "Requests to the API server.", ["verb", "resource", "code"])
EVENTS_DROPPED = Counter("nri_dranet_events_dropped", "Kubernetes Events that could not be sent.")
WATCH_RESTARTS = Counter("nri_dranet_watch_restarts", "Watches begun anew.", ["resource"])


def exposition() -> bytes:
    """Return all metrics as Prometheus text."""
    return generate_latest()
