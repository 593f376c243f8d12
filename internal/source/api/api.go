// Package api follows policies, namespaces and pods on a Kubernetes API server.
package api

import (
	_ "k8s.io/client-go/rest"
	_ "k8s.io/client-go/tools/cache"
	_ "k8s.io/client-go/tools/clientcmd"
)
