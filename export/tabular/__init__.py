"""Export of estimators over tables: scikit-learn pipelines, XGBoost and LightGBM."""
