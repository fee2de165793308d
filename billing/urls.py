from __future__ import annotations

from django.urls import path

from billing.web import credit_views, order_views, sandbox_views, webhook_views

app_name = "billing"

urlpatterns = [
    path("", credit_views.overview, name="overview"),
    path("balance", credit_views.balance, name="balance"),
    path("history/", credit_views.history, name="history"),
    path("history.csv", credit_views.history_csv, name="history_csv"),
    path("usage/", credit_views.usage, name="usage"),
    path("usage.csv", credit_views.usage_csv, name="usage_csv"),
    path("limits/", credit_views.limits_page, name="limits"),
    path("redeem/", credit_views.redeem, name="redeem"),
    path("packages/", order_views.packages_page, name="packages"),
    path("packages.json", order_views.packages_json, name="packages_json"),
    path("buy/", order_views.buy, name="buy"),
    path("invoice-address/", order_views.invoice_address, name="invoice_address"),
    path("orders/<uuid:order_id>/", order_views.order, name="order"),
    path("orders/<uuid:order_id>/pay/", order_views.pay, name="pay"),
    path("orders/<uuid:order_id>/return/", order_views.order_return, name="order_return"),
    path("orders/<uuid:order_id>/receipt.pdf", order_views.receipt, name="receipt"),
    path("orders/<uuid:order_id>/refund/", order_views.refund, name="refund"),
    path("top-up/", order_views.top_up_page, name="top_up"),
    path("webhooks/<slug:provider>/", webhook_views.webhook, name="webhook"),
    path("sandbox/<slug:payment_id>/", sandbox_views.sandbox, name="sandbox"),
]
