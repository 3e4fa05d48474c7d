{{- define "nri-dranet.labels" -}}
app.kubernetes.io/name: nri-dranet
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}
{{- define "nri-dranet.selector" -}}
app.kubernetes.io/name: nri-dranet
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- define "nri-dranet.name" -}}
{{- if contains "nri-dranet" .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-nri-dranet{{ end -}}
{{- end }}
{{- define "nri-dranet.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
