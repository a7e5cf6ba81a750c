{{- define "stoa.dnsRule" -}}
- to: [{namespaceSelector: {}}]
  ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]
{{- end }}

{{- define "stoa.hubRule" -}}
{{- if .Values.networkPolicy.allowHub }}
- ports: [{protocol: TCP, port: 443}]
{{- end }}
{{- end }}

{{/* Labels that KubeRay gives nodes of our cluster: list root, type. */}}
{{- define "stoa.rayNode" -}}
ray.io/cluster: {{ include "stoa.fullname" (index . 0) }}-ray
ray.io/node-type: {{ index . 1 }}
{{- end }}

{{- define "stoa.rayPeer" -}}
- podSelector:
    matchLabels:
      ray.io/cluster: {{ include "stoa.fullname" . }}-ray
{{- end }}

{{- define "stoa.gatewayPeer" -}}
- podSelector:
    matchLabels: {{- include "stoa.gateway" . | nindent 6 }}
{{- end }}
