{{- define "stoa.fullname" -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else }}{{ $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}{{ end }}{{ end }}
{{- end }}

{{- define "stoa.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "stoa.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "stoa.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "stoa.gateway" -}}
{{ include "stoa.selector" . }}
app.kubernetes.io/component: gateway
{{- end }}

{{- define "stoa.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ default $.Chart.AppVersion .tag }}{{ end }}
{{- end }}
{{- end }}

{{- define "stoa.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ default (include "stoa.fullname" .) .Values.serviceAccount.name }}
{{- else }}{{ default "default" .Values.serviceAccount.name }}{{ end }}
{{- end }}

{{/* The Ray cluster's address; empty: engines run beside the gateway. */}}
{{- define "stoa.cluster" -}}
{{- if .Values.ray.enabled }}ray://{{ include "stoa.fullname" . }}-ray-head-svc:10001{{ else }}{{ .Values.ray.externalAddress }}{{ end }}
{{- end }}

{{- define "stoa.manyGateways" -}}
{{- if or .Values.autoscaling.enabled (gt (int .Values.gateway.replicas) 1) }}yes{{ end }}
{{- end }}

{{/* A second gateway would be in the way, even for a moment: SQLite, or a volume that one node alone may mount. */}}
{{- define "stoa.onlyOne" -}}
{{- $home := .Values.persistence.home }}
{{- if or (not .Values.database.existingSecret) (and $home.enabled (ne $home.accessMode "ReadWriteMany")) }}yes{{ end }}
{{- end }}

{{/* stoa.toml. A string in JSON is one in TOML. */}}
{{- define "stoa.toml" -}}
model = {{ .Values.model.name | toJson }}
{{- with .Values.model.servedName }}
served_model_name = {{ . | toJson }}
{{- end }}
auth = {{ .Values.auth.mode | toJson }}
drain_s = {{ .Values.gateway.drainSeconds }}
{{- with include "stoa.cluster" . }}
cluster = {{ . | toJson }}
min_replicas = {{ $.Values.fleet.minReplicas }}
max_replicas = {{ $.Values.fleet.maxReplicas }}
{{- end }}
{{- range $key, $value := .Values.config }}
{{ $key }} = {{ include "stoa.tomlValue" $value }}
{{- end }}
{{- end }}

{{/* Lists and maps stand in one line. */}}
{{- define "stoa.tomlValue" -}}
{{- if kindIs "map" . -}}
{ {{- range $i, $key := keys . | sortAlpha }}{{ if $i }}, {{ end }}{{ $key | toJson }} = {{ include "stoa.tomlValue" (get $ $key) }}{{ end -}} }
{{- else if kindIs "slice" . -}}
[{{ range $i, $value := . }}{{ if $i }}, {{ end }}{{ include "stoa.tomlValue" $value }}{{ end }}]
{{- else }}{{ . | toJson }}
{{- end }}
{{- end }}

{{/* A variable from a Secret: dict "name" "secret" "key". */}}
{{- define "stoa.secretEnv" -}}
- name: {{ .name }}
  valueFrom:
    secretKeyRef: {name: {{ .secret | quote }}, key: {{ .key | quote }}}
{{- end }}

{{/* What gateways and Ray nodes mount: temporary files, home, adapters, models. */}}
{{- define "stoa.sharedVolumes" -}}
{{- $name := include "stoa.fullname" . -}}
- name: tmp
  emptyDir: {}
{{- if eq .Values.persistence.adapters.storage "claim" }}
- name: adapters
  persistentVolumeClaim:
    claimName: {{ default (printf "%s-adapters" $name) .Values.persistence.adapters.existingClaim }}
{{- end }}
{{- if .Values.persistence.models.enabled }}
- name: models
  persistentVolumeClaim:
    claimName: {{ default (printf "%s-models" $name) .Values.persistence.models.existingClaim }}
{{- end }}
{{- end }}

{{/* dict "root" "readOnly" */}}
{{- define "stoa.sharedMounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: home, mountPath: /var/lib/stoa}
{{- if eq .root.Values.persistence.adapters.storage "claim" }}
- {name: adapters, mountPath: /var/lib/stoa/adapters, readOnly: {{ .readOnly }}}
{{- end }}
{{- if .root.Values.persistence.models.enabled }}
- {name: models, mountPath: /models, readOnly: {{ .readOnly }}}
{{- end }}
{{- end }}

{{/* Variables of gateways and Ray nodes alike. */}}
{{- define "stoa.sharedEnv" -}}
{{- if .Values.persistence.models.enabled }}
- {name: HF_HOME, value: /models/hub}
{{- end }}
{{- with .Values.model }}
{{- if .hubSecret }}
{{ include "stoa.secretEnv" (dict "name" "HF_TOKEN" "secret" .hubSecret "key" .hubSecretKey) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "stoa.claim" -}}
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: {{ include "stoa.fullname" .root }}-{{ .suffix }}
  labels: {{- include "stoa.labels" .root | nindent 4 }}
  annotations:
    helm.sh/resource-policy: keep
spec:
  accessModes: [{{ .accessMode }}]
  {{- with .claim.storageClassName }}
  storageClassName: {{ . }}
  {{- end }}
  resources:
    requests:
      storage: {{ .claim.size }}
{{- end }}
