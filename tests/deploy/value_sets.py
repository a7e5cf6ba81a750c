"""Values that people give, from nothing to everything."""

from typing import Any

_PEERS = [{"podSelector": {"matchLabels": {"app": "state"}}}]

ALONE: dict[str, Any] = {}

MANY_GATEWAYS: dict[str, Any] = {
    "gateway": {"replicas": 3, "drainSeconds": 120},
    "auth": {"existingSecret": "stoa-key"},
    "database": {"existingSecret": "stoa-database"},
    "redis": {"existingSecret": "stoa-redis"},
    "persistence": {"home": {"enabled": False}, "adapters": {"storage": "claim"}},
    "networkPolicy": {"databaseTo": _PEERS, "redisTo": _PEERS},
}

FLEET: dict[str, Any] = {
    **MANY_GATEWAYS,
    "ray": {
        "enabled": True,
        "auth": {"existingSecret": "stoa-ray"},
        "workerGroups": {
            "spot": {
                "zones": ["eu-1a", "eu-1b"],
                "nodeSelector": {"example.com/spot": "true"},
                "tolerations": [{"key": "example.com/spot", "operator": "Exists", "effect": "NoSchedule"}],
            }
        },
    },
}

EVERYTHING: dict[str, Any] = {
    **FLEET,
    "image": {
        "repository": "registry.example/stoa",
        "digest": "sha256:" + "0a" * 32,
        "pullSecrets": ["registry"],
    },
    "model": {"name": "owner/model", "servedName": "base", "hubSecret": "hub"},
    "config": {"max_queue": 2048, "memory_share": 0.3, "speculation": False},
    "gateway": {
        "host": "::",
        "extraEnv": [{"name": "OMP_NUM_THREADS", "value": "1"}],
        "envFromSecrets": ["remotes"],
        "extraVolumes": [{"name": "more", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "tolerations": [{"key": "gateway", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule"}
        ],
        "podAnnotations": {"example.com/team": "ai"},
        "podLabels": {"team": "ai"},
        "priorityClassName": "high",
    },
    "autoscaling": {"enabled": True},
    "podDisruptionBudget": {"maxUnavailable": "25%"},
    "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
    "ingress": {
        "enabled": True,
        "className": "nginx",
        "annotations": {"a": "b"},
        "hosts": ["stoa.example"],
        "tls": [{"secretName": "tls", "hosts": ["stoa.example"]}],
    },
    "httpRoute": {"enabled": True, "parentRefs": [{"name": "edge"}], "hostnames": ["stoa.example"]},
    "ray": {
        **FLEET["ray"],
        "gcs": {"redisAddress": "redis:6379", "existingSecret": "stoa-redis"},
        "workerGroups": {
            "spot": {
                "zones": ["eu-1a"],
                "labels": {"ray.io/accelerator-type": "L4"},
                "annotations": {"a": "b"},
                "runtimeClassName": "nvidia",
                "resources": {"limits": {"nvidia.com/gpu": 1, "memory": "16Gi"}},
            },
            "on-demand": None,
        },
    },
    "persistence": {**FLEET["persistence"], "models": {"enabled": True, "storageClassName": "fast"}},
    "networkPolicy": {
        **FLEET["networkPolicy"],
        "ingressFrom": [{"namespaceSelector": {}}],
        "apiTo": [{"ipBlock": {"cidr": "10.0.0.1/32"}}],
        "allowHub": True,
        "allowMetadata": True,
        "extraEgress": [{"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "ports": [{"port": 443}]}],
    },
    "serviceAccount": {"annotations": {"a": "b"}},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
}

EXTERNAL_RAY: dict[str, Any] = {
    "ray": {"externalAddress": "ray://ray.example:10001", "auth": {"existingSecret": "stoa-ray"}},
    "persistence": {"adapters": {"storage": "none"}},
    "networkPolicy": {"extraEgress": [{"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]}]},
}

ALL = {
    "alone": ALONE,
    "many gateways": MANY_GATEWAYS,
    "fleet": FLEET,
    "everything": EVERYTHING,
    "external Ray": EXTERNAL_RAY,
}
