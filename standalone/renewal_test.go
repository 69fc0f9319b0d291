package main_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/url"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestCertificateRenewal outlives the first certificates in real time: a client that rereads its kubeconfig never
// fails, and a connection made with the first certificate goes on.
func TestCertificateRenewal(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skipf("SKIPPED %s: takes over two minutes of real time; run without -short", t.Name())
	}
	const lifetime = 2 * time.Minute
	ctx := context.Background()
	s := startServer(t, dataDir(t), "--certificate-lifetime", lifetime.String())
	first := s.client(t)
	made := createConfigMap(t, first, "first")
	open, err := first.CoreV1().ConfigMaps("default").Watch(ctx, metav1.ListOptions{
		ResourceVersion: made.ResourceVersion, FieldSelector: "metadata.name=second",
	})
	if err != nil {
		t.Fatal(err)
	}
	defer open.Stop()

	clientBefore, serverBefore := clientCertificate(t, s), servedCertificate(t, s)
	end := time.After(time.Until(later(clientBefore.NotAfter, serverBefore.NotAfter)) + 20*time.Second)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for running := true; running; {
		if _, err := s.client(t).CoreV1().ConfigMaps("default").Get(ctx, "first", metav1.GetOptions{}); err != nil {
			t.Errorf("%s after the first certificate expires: %v", time.Since(clientBefore.NotAfter), err)
		}
		select {
		case <-tick.C:
		case <-end:
			running = false
		}
	}

	for what, pair := range map[string][2]*x509.Certificate{
		"administrator's": {clientBefore, clientCertificate(t, s)},
		"served":          {serverBefore, servedCertificate(t, s)},
	} {
		if pair[0].NotAfter.After(time.Now()) || pair[1].NotAfter.Before(time.Now()) {
			t.Errorf("the %s certificate was valid until %s, is until %s", what, pair[0].NotAfter, pair[1].NotAfter)
		}
	}
	createConfigMap(t, s.client(t), "second")
	if event, running := <-open.ResultChan(); !running || event.Object.(*corev1.ConfigMap).Name != "second" {
		t.Errorf("the watch opened with the first certificate got %v (open: %v)", event, running)
	}
	controllersWork(t, s)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func clientCertificate(t *testing.T, s *server) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(s.config(t).CertData)
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

func servedCertificate(t *testing.T, s *server) *x509.Certificate {
	t.Helper()
	config := s.config(t)
	address, err := url.Parse(config.Host)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(config.CAData)
	connection, err := tls.Dial("tcp", address.Host, &tls.Config{RootCAs: roots})
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	return connection.ConnectionState().PeerCertificates[0]
}

// controllersWork has a namespace furnished and taken away.
func controllersWork(t *testing.T, s *server) {
	t.Helper()
	ctx := context.Background()
	client := s.client(t)
	const name = "furnished"
	if _, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the namespace gets its service account and the root certificate", func() error {
		if _, err := client.CoreV1().ServiceAccounts(name).Get(ctx, "default", metav1.GetOptions{}); err != nil {
			return err
		}
		_, err := client.CoreV1().ConfigMaps(name).Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
		return err
	})
	if err := client.CoreV1().Namespaces().Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the namespace is gone", func() error {
		_, err := client.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("still there: %v", err)
	})
}
