"""The OCI hook `podwire-oci-hook`, for podman 5 and other runtimes without CNI (OCI runtime specification, "POSIX-platform Hooks")."""
