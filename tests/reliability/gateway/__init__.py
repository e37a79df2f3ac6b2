"""The gateway under faults: `make test-gateway-faults`."""
