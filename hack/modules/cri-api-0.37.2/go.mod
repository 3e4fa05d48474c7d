module nri-dranet/parts/cri-api-0.37.2

go 1.26.0

require k8s.io/cri-api v0.37.2 // indirect
