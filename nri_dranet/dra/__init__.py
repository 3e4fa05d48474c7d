"""The kubelet's side: registration, prepare, unprepare, ResourceSlices, health."""
