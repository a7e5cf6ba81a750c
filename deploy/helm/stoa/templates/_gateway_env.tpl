{{/* Secrets by reference, and what else the gateway's environment needs. */}}
{{- define "stoa.gatewayEnv" -}}
- {name: STOA_NODE, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
{{- with .Values.auth }}{{- if .existingSecret }}
{{ include "stoa.secretEnv" (dict "name" "STOA_API_KEY" "secret" .existingSecret "key" .secretKey) }}
{{- end }}{{- end }}
{{- with .Values.database }}{{- if .existingSecret }}
{{ include "stoa.secretEnv" (dict "name" "STOA_DB" "secret" .existingSecret "key" .secretKey) }}
{{- end }}{{- end }}
{{- with .Values.redis }}{{- if .existingSecret }}
{{ include "stoa.secretEnv" (dict "name" "STOA_REDIS" "secret" .existingSecret "key" .secretKey) }}
{{- end }}{{- end }}
{{- if include "stoa.cluster" . }}
- {name: RAY_AUTH_MODE, value: token}
{{ include "stoa.secretEnv" (dict "name" "RAY_AUTH_TOKEN" "secret" .Values.ray.auth.existingSecret "key" "auth_token") }}
{{- end }}
{{- with include "stoa.sharedEnv" . | trim }}
{{ . }}
{{- end }}
{{- with .Values.gateway.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}
