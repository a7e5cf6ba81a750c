{{/* What no schema can say: values that contradict each other. */}}
{{- define "stoa.checks" -}}
{{- $v := .Values }}
{{- if and $v.ray.enabled $v.ray.externalAddress }}
{{- fail "ray.enabled makes a cluster and ray.externalAddress names another; choose one" }}
{{- end }}
{{- if and (include "stoa.cluster" .) (not $v.ray.auth.existingSecret) }}
{{- fail "ray.auth.existingSecret: name a Secret with the key auth_token; whoever reaches an open Ray cluster runs code in it" }}
{{- end }}
{{- if gt (int $v.fleet.minReplicas) (int $v.fleet.maxReplicas) }}
{{- fail "fleet.minReplicas is above fleet.maxReplicas" }}
{{- end }}
{{- if and $v.autoscaling.enabled (gt (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas)) }}
{{- fail "autoscaling.minReplicas is above autoscaling.maxReplicas" }}
{{- end }}
{{- if include "stoa.manyGateways" . }}
{{- if not (and $v.database.existingSecret $v.redis.existingSecret) }}
{{- fail "several gateways share a database and limits: name database.existingSecret and redis.existingSecret" }}
{{- end }}
{{- if and $v.persistence.home.enabled (ne $v.persistence.home.accessMode "ReadWriteMany") }}
{{- fail "several gateways: persistence.home.accessMode must be ReadWriteMany, or persistence.home.enabled false" }}
{{- end }}
{{- if and (not $v.persistence.home.enabled) (eq $v.persistence.adapters.storage "home") }}
{{- fail "several gateways share adapters: persistence.adapters.storage must be claim, or none" }}
{{- end }}
{{- end }}
{{- if and (include "stoa.cluster" .) (eq $v.persistence.adapters.storage "home") }}
{{- fail "Ray workers read adapters from a shared volume: persistence.adapters.storage must be claim, or none" }}
{{- end }}
{{- if $v.networkPolicy.enabled }}
{{- if and $v.database.existingSecret (not $v.networkPolicy.databaseTo) }}
{{- fail "networkPolicy.databaseTo: say where the database is, as NetworkPolicyPeers" }}
{{- end }}
{{- if and $v.ray.externalAddress (not $v.networkPolicy.extraEgress) }}
{{- fail "networkPolicy.extraEgress: say where the Ray cluster and its nodes are, as egress rules" }}
{{- end }}
{{- if and $v.redis.existingSecret (not $v.networkPolicy.redisTo) }}
{{- fail "networkPolicy.redisTo: say where redis is, as NetworkPolicyPeers" }}
{{- end }}
{{- end }}
{{- if and $v.ingress.enabled (not $v.ingress.hosts) }}
{{- fail "ingress.hosts: name at least one host" }}
{{- end }}
{{- if and $v.httpRoute.enabled (not $v.httpRoute.parentRefs) }}
{{- fail "httpRoute.parentRefs: name at least one Gateway" }}
{{- end }}
{{- end }}
