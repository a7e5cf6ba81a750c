{{/* Pod template of a Ray node: dict "root" "container" "resources" "nodeSelector" "tolerations" "labels"
     "annotations" "graceSeconds" "runtimeClassName" "head". KubeRay adds the command, the probes and /dev/shm. */}}
{{- define "stoa.rayPod" -}}
{{- $v := .root.Values -}}
metadata:
  labels:
    {{- include "stoa.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .container }}
    {{- with .labels }}{{ toYaml . | nindent 4 }}{{ end }}
  {{- with .annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- if not .head }}
  serviceAccountName: {{ include "stoa.serviceAccount" .root }}
  automountServiceAccountToken: false
  {{- end }}
  # A Service called stoa would set STOA_PORT to a URL.
  enableServiceLinks: false
  securityContext: {{- toYaml $v.podSecurityContext | nindent 4 }}
  terminationGracePeriodSeconds: {{ .graceSeconds }}
  {{- with $v.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- with .runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with .nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: {{ .container }}
      image: {{ include "stoa.image" .root }}
      imagePullPolicy: {{ $v.image.pullPolicy }}
      securityContext: {{- toYaml $v.securityContext | nindent 8 }}
      env:
        - {name: RAY_USAGE_STATS_ENABLED, value: "0"}
        {{- with include "stoa.sharedEnv" .root | trim }}
        {{- . | nindent 8 }}
        {{- end }}
      {{- if .head }}
      ports:
        - {name: gcs-server, containerPort: 6379}
        - {name: dashboard, containerPort: 8265}
        - {name: client, containerPort: 10001}
      {{- end }}
      resources: {{- toYaml .resources | nindent 8 }}
      volumeMounts: {{- include "stoa.sharedMounts" (dict "root" .root "readOnly" true) | nindent 8 }}
  volumes:
    - name: home
      emptyDir: {}
    {{- include "stoa.sharedVolumes" .root | nindent 4 }}
{{- end }}

{{/* One worker group: dict "root" "name" "group" (ray.worker and what the group says) "zone" (may be empty). */}}
{{- define "stoa.workerGroup" -}}
{{- $group := .group }}
{{- $market := dict "stoa.io/market" $group.market "ray.io/market-type" $group.market }}
{{- $place := dict "ray.io/availability-zone" (.zone | default (get $group.labels "stoa.io/zone") | default "default") }}
{{- $nodeSelector := deepCopy $group.nodeSelector }}
{{- with .zone }}
{{- $_ := set $place "topology.kubernetes.io/zone" . }}
{{- $_ := set $nodeSelector "topology.kubernetes.io/zone" . }}
{{- end }}
{{- $labels := merge $market $place $group.labels -}}
groupName: {{ .name }}{{ with .zone }}-{{ . }}{{ end }}
replicas: {{ $group.minReplicas }}
minReplicas: {{ $group.minReplicas }}
maxReplicas: {{ $group.maxReplicas }}
labels: {{- toYaml $labels | nindent 2 }}
rayStartParams: {}
template:
  {{- include "stoa.rayPod" (dict "root" .root "container" "ray-worker" "resources" $group.resources "labels" $labels
      "nodeSelector" $nodeSelector "tolerations" $group.tolerations "annotations" $group.annotations
      "graceSeconds" $group.graceSeconds "runtimeClassName" $group.runtimeClassName "head" false) | nindent 2 }}
{{- end }}
